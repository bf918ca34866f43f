import CMoshi

/// What a bundle says of its model.
public struct MoshiInfo: Sendable, Equatable {
  /// Hz.
  public let sampleRate: Int
  /// Samples a frame: 80 ms.
  public let frameSize: Int
  /// Of Moshi's sound.
  public let codebooks: Int
  /// Of the user's sound.
  public let userCodebooks: Int
  /// Size of the text vocabulary.
  public let textTokens: Int
  /// Codes of a codebook.
  public let audioTokens: Int
  /// Frames until the first sound.
  public let delay: Int
  /// Frames that are remembered.
  public let context: Int
  /// Bits of the attention cache; nil where it has the model's own type.
  public let cacheBits: Int?
  /// Weights in memory, in bytes.
  public let weightBytes: UInt64
  /// What made the bundle.
  public let madeBy: String
  /// What the checkpoint says of its licence.
  public let licence: String

  init(_ info: moshi_info) {
    sampleRate = Int(info.sample_rate)
    frameSize = Int(info.frame_size)
    codebooks = Int(info.codebooks)
    userCodebooks = Int(info.user_codebooks)
    textTokens = Int(info.text_tokens)
    audioTokens = Int(info.audio_tokens)
    delay = Int(info.delay)
    context = Int(info.context)
    cacheBits = info.kv_bits == 0 ? nil : Int(info.kv_bits)
    weightBytes = info.weight_bytes
    madeBy = String(cString: info.made_by)
    licence = String(cString: info.licence)
  }
}

/// How a conversation is drawn. The same seed and settings give the same conversation.
public struct MoshiSettings: Sendable, Equatable {
  public var seed: UInt64
  /// How one kind of tokens is chosen. Temperature 0 takes the likeliest; topK 0, topP 1 and minP 0 mean no limit.
  public struct Stream: Sendable, Equatable {
    public var temperature: Double
    public var topK: Int
    public var topP: Double
    public var minP: Double
    public init(temperature: Double, topK: Int = 0, topP: Double = 1, minP: Double = 0) {
      (self.temperature, self.topK, self.topP, self.minP) = (temperature, topK, topP, minP)
    }
    /// The likeliest token, always.
    public static let greedy = Stream(temperature: 0)
  }
  /// Of Moshi's sound.
  public var audio: Stream
  /// Of Moshi's text.
  public var text: Stream

  public init(seed: UInt64 = 0, audio: Stream, text: Stream) {
    (self.seed, self.audio, self.text) = (seed, audio, text)
  }

  init(_ c: moshi_settings) {
    seed = c.seed
    audio = Stream(temperature: c.temperature, topK: Int(c.top_k), topP: c.top_p, minP: c.min_p)
    text = Stream(temperature: c.text_temperature, topK: Int(c.text_top_k), topP: c.text_top_p, minP: c.text_min_p)
  }

  var c: moshi_settings {
    moshi_settings(
      size: MemoryLayout<moshi_settings>.size, seed: seed, temperature: audio.temperature, top_k: Int32(clamping: audio.topK),
      top_p: audio.topP, min_p: audio.minP, text_temperature: text.temperature, text_top_k: Int32(clamping: text.topK),
      text_top_p: text.topP, text_min_p: text.minP)
  }
}
