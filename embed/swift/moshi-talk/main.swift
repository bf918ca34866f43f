// Asks Moshi what a file says, and writes what it answers:
//   swift run moshi-talk BUNDLE CHECKPOINT question.wav reply.wav
import Foundation
import Moshi
import MoshiTalk

func talk(_ paths: [String]) async throws {
  let url = paths.map { URL(fileURLWithPath: $0) }
  let question: Wave
  do { question = try Wave(Data(contentsOf: url[2])) } catch {
    throw MoshiError.argument("\(paths[2]): \(error.localizedDescription)")
  }
  let model = try await MoshiModel(bundle: url[0], checkpoint: url[1])
  guard question.sampleRate == model.info.sampleRate else {
    throw MoshiError.argument("\(paths[2]): \(question.sampleRate) Hz, expected \(model.info.sampleRate)")
  }
  let silence = [Float](repeating: 0, count: 4 * model.info.sampleRate)  // to answer in
  var cutter = FrameCutter(frameSize: model.info.frameSize)
  let frames = cutter.push(question.samples + silence)
  let sound = AsyncStream<[Float]> { stream in
    frames.forEach { stream.yield($0) }
    stream.finish()
  }
  let conversation = try await model.conversation(seed: 7)
  var reply: [Float] = []
  for try await frame in conversation.frames(from: sound) {
    reply += frame.pcm ?? [Float](repeating: 0, count: model.info.frameSize)
    FileHandle.standardOutput.write(Data(frame.text.utf8))
  }
  print()
  try Wave(sampleRate: model.info.sampleRate, samples: reply).data.write(to: url[3], options: .atomic)
}

let arguments = Array(CommandLine.arguments.dropFirst())
guard arguments.count == 4 else {
  FileHandle.standardError.write(Data("usage: moshi-talk BUNDLE CHECKPOINT question.wav reply.wav\n".utf8))
  exit(2)
}
do {
  try await talk(arguments)
} catch {
  FileHandle.standardError.write(Data("moshi-talk: error: \(error.localizedDescription)\n".utf8))
  exit(2)
}
