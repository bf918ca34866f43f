import Foundation
@testable import Moshi
import Testing

/// What the Session says for a case of `embed/tests/cases.py`; MOSHI_CASES is its folder.
struct Reference: Sendable {
  static let folder = ProcessInfo.processInfo.environment["MOSHI_CASES"].map { URL(fileURLWithPath: $0) }
  let settings: MoshiSettings
  let sound: [[Float]]
  let frames: [MoshiFrame]

  init(_ name: String) throws {
    let folder = Self.folder!
    func floats(_ file: String) throws -> [[Float]] {
      let all = try Data(contentsOf: folder.appending(path: file)).withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
      return stride(from: 0, to: all.count, by: 1920).map { Array(all[$0..<$0 + 1920]) }
    }
    let lines = try String(contentsOf: folder.appending(path: name + ".txt"), encoding: .utf8).split(separator: "\n")
    let head = lines[0].split(separator: " ").map(String.init)
    func stream(_ at: Int) -> MoshiSettings.Stream {
      .init(temperature: Double(head[at])!, topK: Int(head[at + 1])!, topP: Double(head[at + 2])!, minP: Double(head[at + 3])!)
    }
    settings = MoshiSettings(seed: UInt64(head[0])!, audio: stream(1), text: stream(5))
    sound = try floats("sound.f32")
    let readable = try floats(name + ".f32")
    frames = zip(lines.dropFirst(), readable).map { line, pcm in
      let words = line.split(separator: " ").map(String.init)
      let hex = Array(words[10].dropFirst())
      let bytes = stride(from: 0, to: hex.count, by: 2).map { UInt8(String(hex[$0...$0 + 1]), radix: 16)! }
      let ready = words[1] == "1"
      return MoshiFrame(
        pcm: ready ? pcm : nil, text: String(decoding: bytes, as: UTF8.self), textToken: Int(words[0])!,
        audioCodes: ready ? words[2..<10].map { Int32($0)! } : nil)
    }
  }
}

func same(_ a: MoshiFrame, _ b: MoshiFrame) -> Bool {
  guard a.textToken == b.textToken, a.text == b.text, a.audioCodes == b.audioCodes else { return false }
  guard let x = a.pcm, let y = b.pcm else { return a.pcm == nil && b.pcm == nil }
  return zip(x, y).allSatisfy { abs($0 - $1) <= 1e-5 }
}

func model(_ name: String) async throws -> MoshiModel {
  let folder = Reference.folder!.appending(path: name)
  return try await MoshiModel(bundle: folder.appending(path: "bundle"), checkpoint: folder.appending(path: "checkpoint"))
}

func stream(_ frames: some Sequence<[Float]>) -> AsyncStream<[Float]> {
  let all = Array(frames)
  return AsyncStream { continuation in
    all.forEach { continuation.yield($0) }
    continuation.finish()
  }
}

@Suite(.serialized, .enabled(if: Reference.folder != nil))
struct SessionTests {
  @Test(arguments: [
    "tiny.sampled", "tiny.greedy", "tiny.mixed", "tiny.narrow", "grows.sampled", "delay2.sampled", "schedule.sampled",
    "q4.sampled", "q8.greedy", "mxfp4.sampled", "kv8.greedy", "miniature.sampled",
  ])
  func equalsTheSession(_ name: String) async throws {
    let reference = try Reference(name)
    let talk = try await model(String(name.prefix { $0 != "." })).conversation(reference.settings)
    var wrong = 0, count = 0
    for try await frame in talk.frames(from: stream(reference.sound)) {
      wrong += same(frame, reference.frames[count]) ? 0 : 1
      count += 1
    }
    #expect(wrong == 0)
    #expect(count == 100)
  }

  @Test func twoConversationsAtOnce() async throws {
    let model = try await model("tiny")
    let (sampled, greedy) = (try Reference("tiny.sampled"), try Reference("tiny.greedy"))
    try await withThrowingTaskGroup(of: Int.self) { group in
      for reference in [sampled, greedy] {
        group.addTask {
          let talk = try await model.conversation(reference.settings)
          var wrong = 0
          for n in 0..<50 where try await !same(talk.step(reference.sound[n]), reference.frames[n]) { wrong += 1 }
          return wrong
        }
      }
      for try await wrong in group { #expect(wrong == 0) }
    }
  }

  @Test func resetSaveAndRestore() async throws {
    let model = try await model("grows")
    let reference = try Reference("grows.sampled")
    let file = FileManager.default.temporaryDirectory.appending(path: "moshi-\(UUID()).conversation")
    defer { try? FileManager.default.removeItem(at: file) }
    let talk = try await model.conversation(reference.settings)
    for n in 0..<20 { _ = try await talk.step(reference.sound[n]) }
    try await talk.save(to: file)
    let again = try await model.restore(from: file)
    for n in 20..<60 { #expect(try await same(again.step(reference.sound[n]), reference.frames[n])) }
    try await talk.reset()
    for n in 0..<20 { #expect(try await same(talk.step(reference.sound[n]), reference.frames[n])) }
  }

  @Test func hooks() async throws {
    struct Enough: Error {}
    let reference = try Reference("tiny.sampled")
    let talk = try await model("tiny").conversation(reference.settings)
    try await talk.onText { _ in 3 }
    #expect(try await talk.step(reference.sound[0]).textToken == 3)
    try await talk.reset()
    try await talk.onText { _ in throw Enough() }
    await #expect(throws: Enough.self) { try await talk.step(reference.sound[0]) }
    try await talk.onText { _ in -7 }
    await #expect(throws: MoshiError.self) { try await talk.step(reference.sound[1]) }
    try await talk.onText(nil)
    #expect(try await same(talk.step(reference.sound[2]), reference.frames[2]))
  }

  @Test func codesAndNaN() async throws {
    let talk = try await model("tiny").conversation()
    let first = try await talk.step(codes: Array(repeating: -1, count: 8))
    try await talk.reset()
    #expect(try await talk.step(codes: Array(repeating: -1, count: 8)) == first)
    _ = try await talk.step([.nan, .infinity] + Array(repeating: 0, count: 1918))
    #expect(await talk.nonfiniteSamples == 2)
  }

  @Test func cancellationEndsBetweenFrames() async throws {
    let reference = try Reference("tiny.sampled")
    let talk = try await model("tiny").conversation(reference.settings)
    let task = Task {
      var count = 0
      for try await _ in talk.frames(from: stream((0..<10_000).map { _ in reference.sound[0] })) { count += 1 }
      return count
    }
    try await Task.sleep(for: .milliseconds(50))
    task.cancel()
    await #expect(throws: CancellationError.self) { try await task.value }
    try await talk.reset()
    #expect(try await same(talk.step(reference.sound[0]), reference.frames[0]))
  }

  @Test func errorsAreNamed() async throws {
    let folder = Reference.folder!
    let failure = await #expect(throws: MoshiError.self) {
      try await MoshiModel(bundle: URL(fileURLWithPath: "/nowhere"), checkpoint: folder)
    }
    guard case .bundle(let words) = failure else { return #expect(Bool(false), "\(String(describing: failure))") }
    #expect(words.hasPrefix("/nowhere/manifest.txt: No such file or directory; expected a bundle"))
    let talk = try await model("tiny").conversation()
    await #expect(throws: MoshiError.argument("pcm: got 3 samples, expected 1920")) { try await talk.step([0, 0, 0]) }
    let model = try await model("tiny")
    var settings = model.defaults
    settings.audio.temperature = -1
    await #expect(throws: MoshiError.self) { try await model.conversation(settings) }
    await #expect(throws: MoshiError.self) { try await model.restore(from: folder.appending(path: "sound.f32")) }
  }
}
