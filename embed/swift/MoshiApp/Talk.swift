import Foundation
import Moshi
import MoshiTalk
import Observation

/// A conversation as the screen shows it.
@MainActor @Observable
final class Talk {
  private(set) var state = TalkState.idle
  private(set) var transcript = Transcript()
  private(set) var heard: Float = 0  // levels, 0 to 1
  private(set) var said: Float = 0
  private var task: Task<Void, Never>?
  private var sound: SoundEngine?

  var muted: Bool {
    switch state {
    case .talking(let muted), .interrupted(let muted): muted
    default: false
    }
  }

  func handle(_ event: TalkState.Event) {
    state = state.after(event)
    sound?.hears = state.hears
  }

  func start() {
    handle(.start)
    transcript.clear()
    task = Task {
      do {
        try await run()
      } catch is CancellationError {
      } catch {
        handle(.fail(error.localizedDescription))
      }
      sound?.stop()
      sound = nil
      (heard, said) = (0, 0)
    }
  }

  func stop() {
    handle(.stop)
    task?.cancel()
    sound?.stop()  // ends the stream of frames, and so the task
  }

  func resume() {
    guard case .interrupted = state else { return }
    do {
      try sound?.start()
      handle(.resume)
    } catch {
      handle(.fail(error.localizedDescription))
    }
  }

  /// The bundle and the weights lie in the app's resources; an app that fetches them puts its folders here.
  private func run() async throws {
    guard let bundle = Bundle.main.url(forResource: "moshi", withExtension: "bundle"),
      let weights = Bundle.main.url(forResource: "weights", withExtension: nil)
    else { throw MoshiError.bundle("the folders moshi.bundle and weights are not among the app's resources") }
    let model = try await MoshiModel(bundle: bundle, checkpoint: weights, memory: .phone)
    let talk = try await model.conversation(seed: .random(in: 0...UInt64.max))
    let sound = try SoundEngine(sampleRate: model.info.sampleRate, frameSize: model.info.frameSize) { [weak self] event in
      Task { @MainActor in event == .resume ? self?.resume() : self?.handle(event) }
    }
    self.sound = sound
    try Task.checkCancellation()
    try sound.start()
    handle(.loaded)
    sound.hears = state.hears
    for try await frame in talk.frames(from: sound.frames) {
      if let pcm = frame.pcm { sound.play(pcm) }
      transcript.append(frame.text)
      (heard, said) = (sound.level, level(frame.pcm ?? []))
    }
  }
}
