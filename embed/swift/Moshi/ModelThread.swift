import Foundation

/// The one thread that a model's MLX work is done on: MLX 0.32 ties streams to threads, and work of 80 ms would starve
/// the other tasks of Swift's pool.
final class ModelThread: SerialExecutor, @unchecked Sendable {
  // Everything mutable is guarded by `changed`.
  private let changed = NSCondition()
  private var waiting: [UnownedJob] = []

  init() {
    let thread = Thread { [self] in run() }
    thread.name = "moshi"
    thread.qualityOfService = .userInteractive
    thread.stackSize = 8 << 20
    thread.start()
  }

  func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    changed.lock()
    waiting.append(job)
    changed.signal()
    changed.unlock()
  }

  func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }

  /// One thread for all models of the process; it lasts as long as that.
  static let shared = ModelThread()

  private func run() -> Never {
    while true {
      changed.lock()
      while waiting.isEmpty { changed.wait() }
      let job = waiting.removeFirst()
      changed.unlock()
      job.runSynchronously(on: asUnownedSerialExecutor())
    }
  }
}
