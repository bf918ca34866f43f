// One conversation: its state, and a frame of it.
#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "model.hpp"
#include "utf8.hpp"

namespace moshi_mlx {

// All of its functions are called where the model does MLX's work, but for the two that say so.
class Conversation {
 public:
  Conversation(std::shared_ptr<Model> model, const moshi_settings& settings);
  // From what `saved` gave; throws Error(MOSHI_BAD_FILE).
  Conversation(std::shared_ptr<Model> model, const std::string& path, const std::string& saved);

  void reset(const moshi_settings* settings);
  moshi_frame step(const float* pcm, size_t samples);
  moshi_frame step_codes(const int32_t* codes, size_t count);
  std::string saved();
  void free_arrays();
  void set_hook(moshi_on_text hook, void* context) { hook_ = hook, context_ = context; }
  void check_idle() const;  // not within its own hook

  const std::shared_ptr<Model>& model() const { return model_; }  // from any thread
  uint64_t nonfinite() const { return nonfinite_; }               // from any thread

 private:
  void begin();
  void prime();
  void grow();
  void grow_to_last();
  moshi_frame advance(const mx::array& given, bool sound);
  Arrays choose_text(const mx::array& logits);
  int32_t ask_hook(int32_t token, std::string& why);
  moshi_frame frame(const Arrays& spoken, int32_t token);

  std::shared_ptr<Model> model_;
  moshi_settings settings_;
  std::shared_ptr<const Voice> voice_;
  Arrays small_, temporal_, encoder_, decoder_;
  Arrays key_;  // one array, or none
  int positions_ = 0, capacity_ = 0;
  bool broken_ = false, asking_ = false;
  std::atomic<uint64_t> nonfinite_{0};
  moshi_on_text hook_ = nullptr;
  void* context_ = nullptr;
  Utf8 utf8_;
  std::string pending_, text_;  // the text of the position before the first frame goes with that frame
  std::vector<float> pcm_;
  std::vector<int32_t> codes_;
};

}  // namespace moshi_mlx
