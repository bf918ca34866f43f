// A bundle with its weights in memory, and the parts of a frame as compiled functions.
#pragma once
#include <map>
#include <memory>
#include <string>

#include "bundle.hpp"
#include "sampler.hpp"
#include "worker.hpp"

namespace moshi_mlx {

// What a frame computes with one conversation's settings.
struct Voice {
  Sampler sampler;
  Compiled draw;   // logits, key, numbers of the text -> text, key, noise of each codebook
  Compiled speak;  // text, hidden, small, noises, numbers of the codes, decoder -> column, ready, small, sound, decoder
};

class Model {
 public:
  Model(const std::string& bundle, const std::string& checkpoint, const moshi_load_options& options);
  ~Model();

  template <class F>
  void run(F&& f) { worker_.run(std::forward<F>(f)); }  // where MLX's work is done

  std::shared_ptr<const Voice> voice(const moshi_settings& settings) const;
  // A new state: small, temporal, encoder, decoder.
  Arrays fresh() const { return parts_->begin({}); }
  const Compiled& hear(int capacity) const { return parts_->hear.at(capacity); }
  const Compiled& hear_codes(int capacity) const { return parts_->hear_codes.at(capacity); }
  // The same, not compiled: for the one position of a conversation's beginning.
  Arrays think(int capacity, const Arrays& inputs) const { return parts_->think.at(capacity)(inputs); }
  Arrays depth(const Voice& voice, const Arrays& inputs) const;
  Arrays draw(const Voice& voice, const Arrays& inputs) const;
  Arrays grow(int capacity, const Arrays& temporal) const { return parts_->grow.at(capacity)(temporal); }

  bool one_ring() const { return one_ring_; }  // of the whole context, from the first frame on

  const Bundle bundle;
  uint64_t weight_bytes = 0;

 private:
  struct Parts {  // made and freed where MLX's work is done
    Arrays parameters;
    Graph begin, encode, depth, decode;
    std::map<int, Graph> think, grow;
    std::map<int, Compiled> hear, hear_codes;
  };
  void free_arrays() noexcept;
  void load(const std::string& checkpoint);
  Arrays read_published(const std::string& checkpoint) const;
  Graph bound(const std::string& name, size_t inputs, size_t outputs) const;
  Arrays hear_sound(int capacity, const Arrays& inputs) const;
  Arrays speak(const Voice& voice, const Arrays& inputs) const;
  void trace_ahead();

  Worker worker_;
  bool one_ring_ = false;
  Arrays parameters_;
  std::unique_ptr<Parts> parts_;
  std::shared_ptr<const Voice> default_voice_;
};

bool same_graphs(const moshi_settings& a, const moshi_settings& b);

}  // namespace moshi_mlx
