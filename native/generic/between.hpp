// Numbers between neighbours of a row: both are looked up in one vector.
// Included inside the namespace of an instruction set, after its vector wrapper.

static void between(const Between& b, const int32_t* x, int first, int count, int32_t* out) {
  constexpr int lanes = kBytes / 4;
  const int32_t *const at = b.at + first, *const weight = b.weight + first, *const next = b.next + first;
  if (!b.near) {
    for (int i = 0; i < count; ++i)
      out[i] = static_cast<int32_t>(static_cast<uint32_t>(x[at[i]]) * static_cast<uint32_t>(weight[i]) +
                                    static_cast<uint32_t>(x[at[i] + 1]) * static_cast<uint32_t>(next[i]));
    return;
  }
  for (int i = 0; i < count; i += lanes) {
    const Vector here = load(x + at[i]), index = subtract32(load(at + i), broadcast32(at[i]));
    const Vector before = lookup32(here, index), after = lookup32(here, add32(index, broadcast32(1)));
    store(out + i, add32(multiply32(before, load(weight + i)), multiply32(after, load(next + i))));
  }
}
