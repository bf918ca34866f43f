#include "worker.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "errors.hpp"

namespace moshi_mlx {

namespace {
std::atomic<bool> process_ends{false};

struct Job {  // on the stack of the thread that waits for it
  const std::function<void()>& work;
  std::exception_ptr error = nullptr;
  bool done = false;
};
}  // namespace

class Worker::Core {
 public:
  void start(std::shared_ptr<Core> self) {
    thread_ = std::thread([self = std::move(self)] { self->loop(); });
    id_ = thread_.get_id();
  }

  void run(const std::function<void()>& work) {
    if (id_ == std::thread::id{}) {
      if (process_ends) fail(MOSHI_FAILED, "the process is ending");  // without keeping exit from its turn
      std::lock_guard lock(turn_);
      if (process_ends) fail(MOSHI_FAILED, "the process is ending");
      work();
      return count();
    }
    if (id_ == std::this_thread::get_id()) return work();
    Job job{work};
    std::unique_lock lock(mutex_);
    if (stopping_) fail(MOSHI_FAILED, "the process is ending");
    jobs_.push_back(&job);
    changed_.notify_one();
    finished_.wait(lock, [&job] { return job.done; });
    lock.unlock();
    if (job.error) std::rethrow_exception(std::move(job.error));
  }

  // Waits for what runs and what is queued; nothing runs here afterwards.
  void stop() noexcept {
    if (id_ == std::thread::id{}) {
      std::lock_guard turn(turn_);
      return;
    }
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    std::call_once(joined_, [this] {
      if (id_ == std::this_thread::get_id())
        thread_.detach();  // a hook has ended the process
      else
        thread_.join();
    });
  }

 private:
  void loop() {
    for (;;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      auto* job = jobs_.front();
      jobs_.pop_front();
      lock.unlock();
      std::exception_ptr error;
      try {
        job->work();
      } catch (...) {
        error = std::current_exception();
      }
      count();
      lock.lock();
      job->error = std::move(error);  // this thread keeps nothing of it: it is freed where it is caught
      job->done = true;
      finished_.notify_all();
    }
  }
  void count() noexcept;

  std::recursive_mutex turn_;
  std::mutex mutex_;
  std::condition_variable changed_, finished_;
  std::deque<Job*> jobs_;
  bool stopping_ = false;
  unsigned long jobs_done_ = 0;
  std::once_flag joined_;
  std::thread thread_;
  std::thread::id id_;
};

namespace {
// Never freed, for threads may ask for them while the process ends.
struct Alive {
  std::mutex mutex;
  std::vector<std::shared_ptr<Worker::Core>> cores;
  std::shared_ptr<Worker::Core> own;  // the library's thread, from its first model until the process ends
};
Alive& alive() {
  static auto* all = new Alive;
  return *all;
}

void end_all() noexcept {
  process_ends = true;
  std::vector<std::shared_ptr<Worker::Core>> cores;
  {
    std::lock_guard lock(alive().mutex);
    cores = alive().cores;
  }
  for (auto& core : cores) core->stop();
}
}  // namespace

// Exit calls its handlers last one first, and MLX makes what it takes apart there as it comes to need it: a handler that
// is set again after 1, 2, 4, 8 ... jobs is before all of it.
void Worker::Core::count() noexcept {
  if ((jobs_done_ & (jobs_done_ - 1)) == 0) std::atexit(end_all);
  jobs_done_++;
}

Worker::Worker(bool own_thread) {
  std::atexit(end_all);
  std::lock_guard lock(alive().mutex);
  if (process_ends) fail(MOSHI_FAILED, "the process is ending");
  if (own_thread && alive().own) {
    core_ = alive().own;
    return;
  }
  core_ = std::make_shared<Core>();
  if (own_thread) core_->start(core_);
  alive().cores.push_back(core_);
  if (own_thread) alive().own = core_;
}

Worker::~Worker() {
  std::lock_guard lock(alive().mutex);
  if (core_ == alive().own) return;
  auto& cores = alive().cores;
  cores.erase(std::remove(cores.begin(), cores.end(), core_), cores.end());
}

void Worker::run_function(const std::function<void()>& work) { core_->run(work); }

}  // namespace moshi_mlx
