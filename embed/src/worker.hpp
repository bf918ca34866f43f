// Where MLX's work is done: on the calling thread, or on one thread of the library's own for all models. MLX 0.32 ties
// streams to threads, and 0.31 crashes where two threads are at work in it.
#pragma once
#include <functional>
#include <memory>

namespace moshi_mlx {

// When a process ends, MLX takes itself apart while threads of an app may still drop what they had. So the first thing
// that exit does is to wait for what runs here; from then on `run` refuses, and what lives stays as it is.
class Worker {
 public:
  explicit Worker(bool own_thread);
  ~Worker();
  Worker(const Worker&) = delete;

  // Runs f and waits for its end; what it throws is thrown here. Throws Error where the process is ending.
  template <class F>
  void run(F&& f) {
    run_function([&f] { f(); });
  }

  class Core;

 private:
  void run_function(const std::function<void()>& work);

  std::shared_ptr<Core> core_;
};

}  // namespace moshi_mlx
