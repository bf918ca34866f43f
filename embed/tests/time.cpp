// How long frames take from C++, for bench/peers/embedding.py: moshi-time BUNDLE CHECKPOINT FRAMES -> ms of each, in a line, and
// in a second one the ms for which the thread that calls was at work itself: walking graphs, handing kernels out.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <moshi.hpp>
#include <vector>

static double worked() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return 1e3 * double(t.tv_sec) + double(t.tv_nsec) / 1e6;
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  auto options = moshi_load_defaults();
  options.own_thread = 0;
  moshi::Model model(argv[1], argv[2], options);
  auto talk = model.begin();
  std::vector<float> silence(size_t(model.info().frame_size));
  std::vector<double> host;
  for (int n = 0; n < std::atoi(argv[3]); n++) {
    auto began = std::chrono::steady_clock::now();
    double before = worked();
    talk.step(silence);
    host.push_back(worked() - before);
    printf("%.3f ", std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count());
  }
  puts("");
  for (double ms : host) printf("%.3f ", ms);
  puts("");
}
