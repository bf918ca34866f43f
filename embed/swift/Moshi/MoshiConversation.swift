import CMoshi
import Foundation

/// 80 ms of Moshi's side of a conversation.
public struct MoshiFrame: Sendable, Equatable {
  /// [frameSize] in [-1, 1], what Moshi says meanwhile; nil while the delay fills.
  public let pcm: [Float]?
  /// What this frame adds to the text, "" for padding.
  public let text: String
  public let textToken: Int
  /// [codebooks], the codes of `pcm`; nil while the delay fills.
  public let audioCodes: [Int32]?
}

/// One conversation. Made by ``MoshiModel/conversation(seed:)``; its frames are counted from there on.
///
/// Several conversations can be held with one model; their frames are computed one after the other.
public actor MoshiConversation {
  public nonisolated var unownedExecutor: UnownedSerialExecutor { ModelThread.shared.asUnownedSerialExecutor() }

  /// A hook is called once a frame with the sampled text token, before the sound is made: it returns another token to
  /// say that instead, or nil to keep it. What it throws comes out of ``step(_:)``, and the frame counts as spoken with
  /// the sampled token. It runs on the model's thread, so it must not wait for anything.
  public typealias OnText = @Sendable (Int) throws -> Int?

  public nonisolated let info: MoshiInfo
  private let handle: Handle
  private var hook: Hook?

  final class Handle: @unchecked Sendable {  // used on the model's thread alone
    let talk: OpaquePointer
    init(_ talk: OpaquePointer) { self.talk = talk }
  }

  private final class Hook: @unchecked Sendable {  // used on the model's thread alone
    let call: OnText
    var thrown: (any Error)?
    init(_ call: @escaping OnText) { self.call = call }
  }

  init(_ handle: Handle, _ info: MoshiInfo) {
    self.handle = handle
    self.info = info
  }

  deinit {
    let handle = handle
    Task { @ModelActor in moshi_end(handle.talk) }  // the arrays are freed on the thread that made them
  }

  /// One frame: pcm [frameSize] in [-1, 1], what the user says -> what Moshi says meanwhile.
  ///
  /// NaN and infinite samples count as silence.
  public func step(_ pcm: [Float]) throws -> MoshiFrame {
    try frame { frame in pcm.withUnsafeBufferPointer { moshi_step(handle.talk, $0.baseAddress, $0.count, &frame) } }
  }

  /// One frame from Mimi codes of the user's sound: [userCodebooks], -1 where there is no input.
  public func step(codes: [Int32]) throws -> MoshiFrame {
    try frame { frame in codes.withUnsafeBufferPointer { moshi_step_codes(handle.talk, $0.baseAddress, $0.count, &frame) } }
  }

  /// Begins anew, without loading anything; `settings` nil: as before.
  public func reset(_ settings: MoshiSettings? = nil) throws(MoshiError) {
    guard let settings else { return try checked { moshi_reset(handle.talk, nil) } }
    var given = settings.c
    try checked { moshi_reset(handle.talk, &given) }
  }

  /// Sets the hook, or with nil removes it. See ``OnText``.
  public func onText(_ call: OnText?) throws(MoshiError) {
    let hook = call.map(Hook.init)
    let context = hook.map { Unmanaged.passUnretained($0).toOpaque() }
    try checked { moshi_set_on_text(handle.talk, hook == nil ? nil : ask, context) }
    self.hook = hook
  }

  /// Writes the conversation to a file, which is there whole or not at all; ``MoshiModel/restore(from:)`` goes on.
  public func save(to file: URL) throws(MoshiError) {
    try checked { moshi_save(handle.talk, file.path) }
  }

  /// NaN and infinite samples that counted as silence so far.
  public var nonfiniteSamples: Int { Int(moshi_nonfinite_samples(handle.talk)) }

  /// The frames that answer what the user says, one for each that `sound` gives, [frameSize] each.
  ///
  /// A frame is computed when it is asked for. Ending the loop, or cancelling its task, ends it between two frames.
  public nonisolated func frames<Sound: AsyncSequence & Sendable>(from sound: Sound) -> MoshiFrames<Sound>
  where Sound.Element == [Float] {
    MoshiFrames(talk: self, sound: sound)
  }

  private func frame(_ call: (inout moshi_frame) -> moshi_status) throws -> MoshiFrame {
    var frame = moshi_frame()
    do {
      try checked { call(&frame) }
    } catch {
      if let thrown = hook?.thrown {
        hook?.thrown = nil
        throw thrown
      }
      throw error
    }
    return MoshiFrame(
      pcm: frame.pcm.map { Array(UnsafeBufferPointer(start: $0, count: info.frameSize)) },
      text: String(cString: frame.text), textToken: Int(frame.text_token),
      audioCodes: frame.audio_codes.map { Array(UnsafeBufferPointer(start: $0, count: info.codebooks)) })
  }

  private let ask: moshi_on_text = { token, context in
    let hook = Unmanaged<Hook>.fromOpaque(context!).takeUnretainedValue()
    do {
      guard let chosen = try hook.call(Int(token)) else { return MOSHI_KEEP }
      return chosen < 0 ? Int32.max : Int32(clamping: chosen)  // a token that there is not: refused with its words
    } catch {
      hook.thrown = error
      return MOSHI_FAIL
    }
  }
}

/// The frames of a conversation, as ``MoshiConversation/frames(from:)`` gives them.
public struct MoshiFrames<Sound: AsyncSequence & Sendable>: AsyncSequence, Sendable where Sound.Element == [Float] {
  let talk: MoshiConversation
  let sound: Sound

  public struct AsyncIterator: AsyncIteratorProtocol {
    let talk: MoshiConversation
    var sound: Sound.AsyncIterator

    public mutating func next() async throws -> MoshiFrame? {
      try Task.checkCancellation()
      guard let pcm = try await sound.next() else { return nil }
      return try await talk.step(pcm)
    }
  }

  public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(talk: talk, sound: sound.makeAsyncIterator()) }
}
