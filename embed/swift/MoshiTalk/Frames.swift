/// Cuts samples that come in any amounts into frames, as the model takes them.
public struct FrameCutter: Sendable {
  public let frameSize: Int
  private var held: [Float] = []

  public init(frameSize: Int) { self.frameSize = frameSize }

  /// The frames that are whole with these samples.
  public mutating func push(_ samples: some Collection<Float>) -> [[Float]] {
    held.append(contentsOf: samples)
    let count = held.count / frameSize
    let frames = (0..<count).map { Array(held[$0 * frameSize..<($0 + 1) * frameSize]) }
    held.removeFirst(count * frameSize)
    return frames
  }

  /// What is left, filled with silence; nil where nothing is.
  public mutating func finish() -> [Float]? {
    guard !held.isEmpty else { return nil }
    defer { held = [] }
    return held + Array(repeating: 0, count: frameSize - held.count)
  }

  /// Forgets what waits for the rest of its frame.
  public mutating func clear() { held = [] }
}

/// Frames on their way to a reader that may be late: the oldest are dropped, and counted, beyond `most`.
public struct FrameQueue: Sendable {
  public let most: Int
  public private(set) var dropped = 0
  private var frames: [[Float]] = []

  public init(most: Int) { self.most = most }
  public var count: Int { frames.count }

  public mutating func push(_ frame: [Float]) {
    frames.append(frame)
    if frames.count > most {
      frames.removeFirst(frames.count - most)
      dropped += 1
    }
  }
  public mutating func pop() -> [Float]? { frames.isEmpty ? nil : frames.removeFirst() }
  public mutating func clear() { frames = [] }
}

/// How loud a frame is, from 0 (silence, or -60 dB) to 1 (full scale).
public func level(_ samples: some Collection<Float>) -> Float {
  guard !samples.isEmpty else { return 0 }
  let power = samples.reduce(Float(0)) { $0 + $1 * $1 } / Float(samples.count)
  guard power.isFinite, power > 1e-6 else { return 0 }
  return min(1, max(0, 1 + logarithm10(power) / 6))
}
