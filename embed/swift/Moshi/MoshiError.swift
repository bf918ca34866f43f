import CMoshi
import Foundation

#if canImport(MLX)
  import MLX
#endif

/// What went wrong, with words that say what was got and what was expected.
public enum MoshiError: Error, Sendable, Equatable, LocalizedError {
  /// A value that a function does not take.
  case argument(String)
  /// The bundle is missing, damaged, or of another format: export it again.
  case bundle(String)
  /// The weights are missing, damaged, or not those of the bundle.
  case checkpoint(String)
  /// A saved conversation cannot be written or read.
  case file(String)
  /// MLX failed, or memory ran out; reset the conversation before its next frame.
  case failed(String)

  public var errorDescription: String? {
    switch self {
    case .argument(let words), .bundle(let words), .checkpoint(let words), .file(let words), .failed(let words): words
    }
  }

  init(_ status: moshi_status, _ words: String) {
    switch status {
    case MOSHI_BAD_ARGUMENT: self = .argument(words)
    case MOSHI_BAD_BUNDLE: self = .bundle(words)
    case MOSHI_BAD_CHECKPOINT: self = .checkpoint(words)
    case MOSHI_BAD_FILE: self = .file(words)
    default: self = .failed(words)
    }
  }
}

/// Calls a function of moshi.h; what it reports is thrown.
///
/// mlx-swift ends the process at an MLX error unless the call stands within its `withError`.
func checked(_ call: () -> moshi_status) throws(MoshiError) {
  var status = MOSHI_OK
  var words = ""
  func run() {
    status = call()
    if status != MOSHI_OK { words = String(cString: moshi_error()) }
  }
  #if canImport(MLX)
    do { try withError { run() } } catch {
      if status == MOSHI_OK { (status, words) = (MOSHI_FAILED, error.localizedDescription) }
    }
  #else
    run()
  #endif
  if status != MOSHI_OK { throw MoshiError(status, words) }
}
