// How long frames take from Swift, for bench/peers/embedding.py: moshi-time BUNDLE CHECKPOINT FRAMES -> ms of each, in a line.
import Foundation
import Moshi

let arguments = Array(CommandLine.arguments.dropFirst())
guard arguments.count == 3, let frames = Int(arguments[2]) else {
  FileHandle.standardError.write(Data("usage: moshi-time BUNDLE CHECKPOINT FRAMES\n".utf8))
  exit(2)
}
let url = arguments.prefix(2).map { URL(fileURLWithPath: $0) }
let model = try await MoshiModel(bundle: url[0], checkpoint: url[1])
let conversation = try await model.conversation(seed: 0)
let silence = [Float](repeating: 0, count: model.info.frameSize)
let clock = ContinuousClock()
for _ in 0..<frames {
  let taken = try await clock.measure { _ = try await conversation.step(silence) }
  print(String(format: "%.3f", Double(taken.components.attoseconds) / 1e15 + 1e3 * Double(taken.components.seconds)), terminator: " ")
}
print()
