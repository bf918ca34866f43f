// A process that ends while threads still talk and drop what they have, as an app does; each way must end with status 0.
//   moshi-exit CASES WAY     ways: talking, dropping, hook, globals, calling
#include <atomic>
#include <cstdlib>
#include <moshi.hpp>
#include <thread>
#include <vector>

namespace {
std::atomic<int> frames{0};
moshi_model* global_model = nullptr;  // like a Swift app's, which nobody frees

struct Dropped {  // destroyed by exit, after what the library has set up there
  std::unique_ptr<moshi::Model> model;
  std::unique_ptr<moshi::Conversation> talk;
} dropped;

moshi_model* loaded(const std::string& folder, int own_thread = 1) {
  auto options = moshi_load_defaults();
  options.own_thread = own_thread;
  options.warm_up = 0;
  moshi_model* model = nullptr;
  moshi::check(moshi_load((folder + "/tiny/bundle").c_str(), (folder + "/tiny/checkpoint").c_str(), &options, &model));
  return model;
}

// Conversations that begin, talk and end until the process does; then every call says so.
void talk_on(moshi_model* model) {
  std::vector<float> pcm(1920, 0.01f);
  for (;;) {
    moshi_conversation* talk = nullptr;
    if (moshi_begin(model, nullptr, &talk) != MOSHI_OK) continue;
    moshi_frame frame;
    for (int n = 0; n < 3; n++) frames += moshi_step(talk, pcm.data(), pcm.size(), &frame) == MOSHI_OK;
    moshi_end(talk);
  }
}

int32_t leave(int32_t token, void*) {
  if (++frames > 2) std::exit(0);
  return token;
}
}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::string folder = argv[1], way = argv[2];
  std::vector<float> pcm(1920, 0.01f);
  moshi_frame frame;
  if (way == "globals") {
    dropped.model = std::make_unique<moshi::Model>(folder + "/tiny/bundle", folder + "/tiny/checkpoint");
    dropped.talk = std::make_unique<moshi::Conversation>(dropped.model->begin());
    dropped.talk->step(pcm);
    return 0;
  }
  if (way == "calling") {  // without a thread of the library's: one of the app's does it all, as in Swift
    std::thread([folder] { talk_on(global_model = loaded(folder, 0)); }).detach();
    while (frames < 6) std::this_thread::yield();
    return 0;
  }
  global_model = loaded(folder);
  if (way == "hook") {
    moshi_conversation* talk = nullptr;
    moshi::check(moshi_begin(global_model, nullptr, &talk));
    moshi::check(moshi_set_on_text(talk, leave, nullptr));
    for (;;) moshi_step(talk, pcm.data(), pcm.size(), &frame);
  }
  if (way == "dropping") {  // the last handles go while exit is under way, on another thread
    std::vector<moshi_conversation*> talks(8);
    for (auto& talk : talks) moshi::check(moshi_begin(global_model, nullptr, &talk));
    moshi::check(moshi_step(talks[0], pcm.data(), pcm.size(), &frame));
    std::thread([talks] {
      for (auto* talk : talks) moshi_end(talk);
      moshi_free(global_model);
    }).detach();
    return 0;
  }
  for (int t = 0; t < 3; t++) std::thread([] { talk_on(global_model); }).detach();
  while (frames < 6) std::this_thread::yield();
  return 0;
}
