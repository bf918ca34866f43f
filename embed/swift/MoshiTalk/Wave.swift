import Foundation

/// A WAV file in memory: mono samples in [-1, 1].
public struct Wave: Sendable, Equatable {
  public var sampleRate: Int
  public var samples: [Float]

  public init(sampleRate: Int, samples: [Float]) {
    (self.sampleRate, self.samples) = (sampleRate, samples)
  }

  public enum Failure: Error, LocalizedError, Equatable {
    case notWave
    case unknownFormat(Int, bits: Int)
    public var errorDescription: String? {
      switch self {
      case .notWave: "no WAV file"
      case .unknownFormat(let format, let bits): "WAV of format \(format) with \(bits) bits; expected 16 bits or floats"
      }
    }
  }

  /// Reads 16-bit or float samples; several channels are mixed to one.
  public init(_ data: Data) throws {
    let bytes = [UInt8](data)
    func number(_ at: Int, _ count: Int) -> Int { (0..<count).reduce(0) { $0 | Int(bytes[at + $1]) << (8 * $1) } }
    func name(_ at: Int) -> String { String(decoding: bytes[at..<at + 4], as: UTF8.self) }
    guard bytes.count >= 12, name(0) == "RIFF", name(8) == "WAVE" else { throw Failure.notWave }
    var (format, channels, rate, bits, at) = (0, 0, 0, 0, 12)
    while at + 8 <= bytes.count {
      let length = min(number(at + 4, 4), bytes.count - at - 8)
      let body = at + 8
      if name(at) == "fmt ", length >= 16 {
        (format, channels, rate, bits) = (number(body, 2), number(body + 2, 2), number(body + 4, 4), number(body + 14, 2))
        if format == 0xFFFE, length >= 26 { format = number(body + 24, 2) }
      } else if name(at) == "data" {
        guard channels > 0, (format, bits) == (1, 16) || (format, bits) == (3, 32) else {
          throw Failure.unknownFormat(format, bits: bits)
        }
        let width = bits / 8
        sampleRate = rate
        samples = (0..<length / width / channels).map { i in
          (0..<channels).reduce(Float(0)) { sum, channel in
            let value = number(body + (i * channels + channel) * width, width)
            return sum
              + (width == 2 ? Float(Int16(truncatingIfNeeded: value)) / 32768 : Float(bitPattern: UInt32(value)))
          } / Float(channels)
        }
        return
      }
      at = body + length + length % 2
    }
    throw Failure.notWave
  }

  /// The file: 16 bits, mono.
  public var data: Data {
    var data = Data()
    func append(_ value: Int, _ count: Int) { for i in 0..<count { data.append(UInt8(value >> (8 * i) & 255)) } }
    data.append(contentsOf: "RIFF".utf8)
    append(36 + 2 * samples.count, 4)
    data.append(contentsOf: "WAVEfmt ".utf8)
    for (value, count) in [(16, 4), (1, 2), (1, 2), (sampleRate, 4), (2 * sampleRate, 4), (2, 2), (16, 2)] { append(value, count) }
    data.append(contentsOf: "data".utf8)
    append(2 * samples.count, 4)
    for sample in samples { append(Int((max(-1, min(1, sample)) * 32767).rounded(.toNearestOrEven)), 2) }
    return data
  }
}
