// Several threads with several conversations of one model at once; for ThreadSanitizer. moshi-threads CASES
#include <atomic>
#include <iostream>
#include <moshi.hpp>
#include <thread>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::string folder = argv[1];
  std::atomic<int> frames{0};
  {
    moshi::Model model(folder + "/tiny/bundle", folder + "/tiny/checkpoint");
    auto shared = model.begin();
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; t++)
      threads.emplace_back([&, t] {
        std::vector<float> pcm(1920, 0.01f * float(t));
        auto talk = model.begin();
        talk.on_text([&](int32_t) { return frames++, std::nullopt; });
        for (int n = 0; n < 8; n++) {
          talk.step(pcm);
          moshi_frame frame;  // the shared one, from all threads: each call is whole, whoever comes first
          moshi::check(moshi_step(shared.get(), pcm.data(), pcm.size(), &frame));
          if (n == 4) talk.reset();
          try {
            talk.step(pcm.data(), 3);
          } catch (const moshi::Error& error) {
            frames += std::string(error.what()).find("got 3") == std::string::npos ? 1000 : 0;
          }
          model.info(), model.settings(), shared.nonfinite_samples();
        }
      });
    for (auto& thread : threads) thread.join();
  }
  std::cout << "threads: " << frames << " frames\n";
  return frames != 24;
}
