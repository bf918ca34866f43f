/// The words of a conversation as they come, of which a screen keeps the last.
public struct Transcript: Sendable, Equatable {
  public let most: Int
  public private(set) var text = ""

  public init(most: Int = 2_000) { self.most = most }

  public mutating func append(_ fragment: String) {
    text += fragment
    if text.count > most { text.removeFirst(text.count - most) }
  }
  public mutating func clear() { text = "" }
}

/// What a conversation is doing, and what may happen next: the buttons and the sound follow it.
public enum TalkState: Sendable, Equatable {
  case idle
  case loading
  case talking(muted: Bool)
  case interrupted(muted: Bool)  // a call, another app's sound, a device that went away
  case failed(String)

  public enum Event: Sendable, Equatable {
    case start, loaded, stop, mute(Bool), interrupt, resume, fail(String)
  }

  /// The state after an event; the same where the event means nothing now.
  public func after(_ event: Event) -> TalkState {
    switch (self, event) {
    case (_, .fail(let words)): .failed(words)
    case (.idle, .start), (.failed, .start): .loading
    case (.loading, .loaded): .talking(muted: false)
    case (.talking, .mute(let muted)): .talking(muted: muted)
    case (.interrupted, .mute(let muted)): .interrupted(muted: muted)
    case (.talking(let muted), .interrupt): .interrupted(muted: muted)
    case (.interrupted(let muted), .resume): .talking(muted: muted)
    case (.loading, .stop), (.talking, .stop), (.interrupted, .stop): .idle
    default: self
    }
  }

  public var hears: Bool { self == .talking(muted: false) }
  public var runs: Bool {
    switch self {
    case .idle, .failed: false
    default: true
    }
  }
}
