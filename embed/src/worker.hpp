// Where MLX's work is done: on a thread of its own, for MLX 0.32 ties streams to threads, or on the calling thread.
#pragma once
#include <condition_variable>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <thread>

namespace moshi_mlx {

class Worker {
 public:
  explicit Worker(bool own_thread) {
    if (own_thread) thread_ = std::thread([this] { loop(); });
  }
  ~Worker() {
    if (!thread_.joinable()) return;
    {
      std::lock_guard lock(mutex_);
      done_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }
  Worker(const Worker&) = delete;

  // Runs f and waits for its end; what it throws is thrown here.
  template <class F>
  void run(F&& f) {
    if (!thread_.joinable()) {
      std::lock_guard lock(turn_);
      return f();
    }
    if (std::this_thread::get_id() == thread_.get_id()) return f();
    auto task = std::make_shared<std::packaged_task<void()>>([&f] { f(); });  // the worker may leave it after us
    auto result = task->get_future();
    {
      std::lock_guard lock(mutex_);
      jobs_.push_back(std::move(task));
    }
    changed_.notify_one();
    result.get();
  }

 private:
  void loop() {
    for (;;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return done_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      auto job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      (*job)();
    }
  }

  std::recursive_mutex turn_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<std::packaged_task<void()>>> jobs_;
  bool done_ = false;
  std::thread thread_;
};

}  // namespace moshi_mlx
