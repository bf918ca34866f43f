import AVFoundation
import MoshiTalk

/// The microphone as frames, and the speaker: AVAudioEngine with voice processing, which takes Moshi's voice out of what
/// the microphone hears.
final class SoundEngine: @unchecked Sendable {
  /// What the microphone hears, a frame each; silence while nobody may be heard, for the model keeps time by frames.
  let frames: AsyncStream<[Float]>
  private let continuation: AsyncStream<[Float]>.Continuation
  private let engine = AVAudioEngine()
  private let player = AVAudioPlayerNode()
  private let format: AVAudioFormat
  private let changed: @Sendable (TalkState.Event) -> Void
  private var observers: [any NSObjectProtocol] = []

  private let lock = NSLock()  // guards what follows: the tap runs on a thread of the engine's own
  private var cutter: FrameCutter
  private var shown: Float = 0
  private var listening = false

  /// `changed` is told of interruptions (a call, a device that went away) and of their end.
  init(sampleRate: Int, frameSize: Int, changed: @escaping @Sendable (TalkState.Event) -> Void) throws {
    format = AVAudioFormat(commonFormat: .pcmFormatFloat32, sampleRate: Double(sampleRate), channels: 1, interleaved: false)!
    cutter = FrameCutter(frameSize: frameSize)
    self.changed = changed
    // Late frames are dropped, the oldest first: half a second may wait.
    (frames, continuation) = AsyncStream.makeStream(bufferingPolicy: .bufferingNewest(6))
    engine.attach(player)
    engine.connect(player, to: engine.mainMixerNode, format: format)
    observe()
  }

  var hears: Bool {
    get { lock.withLock { listening } }
    set { lock.withLock { listening = newValue } }
  }
  var level: Float { lock.withLock { shown } }

  /// Begins, or goes on after an interruption with whatever devices there are now.
  func start() throws {
    #if os(iOS)
      let session = AVAudioSession.sharedInstance()
      try session.setCategory(.playAndRecord, mode: .voiceChat, options: [.defaultToSpeaker, .allowBluetooth])
      try session.setActive(true)
    #endif
    engine.stop()
    engine.inputNode.removeTap(onBus: 0)
    try engine.inputNode.setVoiceProcessingEnabled(true)
    try tap()
    engine.prepare()
    try engine.start()
    player.play()
  }

  func stop() {
    observers.forEach(NotificationCenter.default.removeObserver)
    observers = []
    engine.inputNode.removeTap(onBus: 0)
    engine.stop()
    continuation.finish()
  }

  func play(_ pcm: [Float]) {
    guard engine.isRunning, let buffer = AVAudioPCMBuffer(pcmFormat: format, frameCapacity: AVAudioFrameCount(pcm.count)) else { return }
    buffer.frameLength = buffer.frameCapacity
    pcm.withUnsafeBufferPointer { buffer.floatChannelData![0].update(from: $0.baseAddress!, count: pcm.count) }
    player.scheduleBuffer(buffer)
  }

  private func tap() throws {
    let from = engine.inputNode.outputFormat(forBus: 0)
    guard from.sampleRate > 0, let converter = AVAudioConverter(from: from, to: format) else {
      throw NSError(domain: "Moshi", code: 1, userInfo: [NSLocalizedDescriptionKey: "there is no microphone"])
    }
    engine.inputNode.installTap(onBus: 0, bufferSize: 2048, format: from) { [weak self] buffer, _ in
      self?.hear(buffer, converter)
    }
  }

  private func hear(_ buffer: AVAudioPCMBuffer, _ converter: AVAudioConverter) {
    let room = AVAudioFrameCount(Double(buffer.frameLength) * format.sampleRate / buffer.format.sampleRate) + 64
    guard let converted = AVAudioPCMBuffer(pcmFormat: format, frameCapacity: room) else { return }
    nonisolated(unsafe) var given: AVAudioPCMBuffer? = buffer
    converter.convert(to: converted, error: nil) { _, status in
      status.pointee = given == nil ? .noDataNow : .haveData
      defer { given = nil }
      return given
    }
    guard let data = converted.floatChannelData else { return }
    let samples = UnsafeBufferPointer(start: data[0], count: Int(converted.frameLength))
    let ready: [[Float]] = lock.withLock {
      shown = listening ? MoshiTalk.level(samples) : 0
      return cutter.push(listening ? Array(samples) : [Float](repeating: 0, count: samples.count))
    }
    ready.forEach { continuation.yield($0) }
  }

  private func observe() {
    let center = NotificationCenter.default
    func on(_ name: Notification.Name, _ call: @escaping @Sendable (Notification) -> Void) {
      observers.append(center.addObserver(forName: name, object: nil, queue: nil, using: call))
    }
    let changed = changed
    on(.AVAudioEngineConfigurationChange) { _ in  // another device, or another rate: begin with what there is
      changed(.interrupt)
      changed(.resume)
    }
    #if os(iOS)
      on(AVAudioSession.interruptionNotification) { note in
        let type = (note.userInfo?[AVAudioSessionInterruptionTypeKey] as? UInt).flatMap(AVAudioSession.InterruptionType.init)
        changed(type == .ended ? .resume : .interrupt)
      }
      on(AVAudioSession.mediaServicesWereResetNotification) { _ in
        changed(.interrupt)
        changed(.resume)
      }
    #endif
  }
}
