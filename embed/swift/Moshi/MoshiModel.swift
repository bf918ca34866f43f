import CMoshi
import Foundation

/// A Moshi in memory, which conversations are begun with.
///
/// ```swift
/// let model = try await MoshiModel(bundle: bundleURL, checkpoint: weightsURL)
/// let talk = try await model.conversation(seed: 7)
/// for try await frame in talk.frames(from: microphone) { speaker.play(frame.pcm) }
/// ```
///
/// All of MLX's work is done on a thread of the library's own; nothing here blocks a thread of Swift's pool.
public actor MoshiModel {
  public nonisolated var unownedExecutor: UnownedSerialExecutor { ModelThread.shared.asUnownedSerialExecutor() }

  /// What the bundle says of the model.
  public nonisolated let info: MoshiInfo
  /// What the checkpoint asks for; conversations use it for what they are not given.
  public nonisolated let defaults: MoshiSettings
  private let handle: Handle

  final class Handle: @unchecked Sendable {  // used on the model's thread alone
    let model: OpaquePointer
    init(_ model: OpaquePointer) { self.model = model }
    deinit {
      nonisolated(unsafe) let model = model
      Task { @ModelActor in moshi_free(model) }
    }
  }

  /// Loads a bundle and the weights that it was made of, and gets everything ready that a frame needs.
  ///
  /// Takes seconds: the weights are read from the disk once, and never twice into memory.
  /// - Parameters:
  ///   - bundle: the folder that `python -m moshi_mlx.export` wrote.
  ///   - checkpoint: the folder of the weights, as published.
  ///   - memory: what MLX may take, of the whole process.
  public init(bundle: URL, checkpoint: URL, memory: MoshiMemory = .standard) async throws(MoshiError) {
    let (handle, info, defaults) = try await Self.load(bundle.path, checkpoint.path, memory)
    self.handle = handle
    self.info = info
    self.defaults = defaults
  }

  /// A new conversation, ready for its first frame.
  public func conversation(_ settings: MoshiSettings) throws(MoshiError) -> MoshiConversation {
    MoshiConversation(
      try made {
        var given = settings.c
        return moshi_begin(handle.model, &given, &$0)
      }, info)
  }

  /// A new conversation with the checkpoint's own settings.
  public func conversation(seed: UInt64 = 0) throws(MoshiError) -> MoshiConversation {
    var settings = defaults
    settings.seed = seed
    return try conversation(settings)
  }

  /// Goes on with a conversation that was saved to a file with the same bundle.
  public func restore(from file: URL) throws(MoshiError) -> MoshiConversation {
    MoshiConversation(try made { moshi_restore(handle.model, file.path, &$0) }, info)
  }

  private nonisolated func made(
    _ call: (inout OpaquePointer?) -> moshi_status
  ) throws(MoshiError) -> MoshiConversation.Handle {
    var talk: OpaquePointer?
    try checked { call(&talk) }
    return MoshiConversation.Handle(talk!)
  }

  /// MLX's memory in bytes, of the whole process: now, and at most so far.
  public func memoryInUse() throws(MoshiError) -> (now: UInt64, peak: UInt64) {
    var (now, peak) = (UInt64(0), UInt64(0))
    try checked { moshi_memory(handle.model, &now, &peak) }
    return (now, peak)
  }

  @ModelActor
  private static func load(
    _ bundle: String, _ checkpoint: String, _ memory: MoshiMemory
  ) throws(MoshiError) -> (Handle, MoshiInfo, MoshiSettings) {
    var options = moshi_load_defaults()
    options.own_thread = 0  // this one is
    options.cache_bytes = memory.cacheBytes
    options.memory_bytes = memory.limitBytes ?? 0
    options.wired_bytes = memory.wiredBytes ?? 0
    var model: OpaquePointer?
    var info = moshi_info()
    try checked { moshi_load(bundle, checkpoint, &options, &model) }
    let handle = Handle(model!)
    try checked { moshi_get_info(handle.model, &info) }
    return (handle, MoshiInfo(info), MoshiSettings(moshi_defaults(handle.model)))
  }
}

/// The actor of the model's thread.
@globalActor
actor ModelActor {
  static let shared = ModelActor()
  nonisolated var unownedExecutor: UnownedSerialExecutor { ModelThread.shared.asUnownedSerialExecutor() }
}

/// How much memory MLX may take, of the whole process.
public struct MoshiMemory: Sendable {
  /// What MLX keeps of memory that was freed.
  public var cacheBytes: UInt64
  /// MLX's limit; nil leaves it as it is.
  public var limitBytes: UInt64?
  /// Memory that is kept wired (macOS 15); nil leaves it as it is.
  public var wiredBytes: UInt64?

  public init(cacheBytes: UInt64 = 512 << 20, limitBytes: UInt64? = nil, wiredBytes: UInt64? = nil) {
    (self.cacheBytes, self.limitBytes, self.wiredBytes) = (cacheBytes, limitBytes, wiredBytes)
  }
  /// For a Mac.
  public static let standard = MoshiMemory()
  /// For a phone: less is kept of what was freed.
  public static let phone = MoshiMemory(cacheBytes: 64 << 20)
}
