// Coordinate descent: rows of a panel of the Gram matrix, times how much the weights changed. Integers, in int32 or in
// double, whose sums are exact in both; so every instruction set gives the same.

template <class T>
static void add_changes(T* __restrict sums, const T* __restrict panel, const WeightChange* changes, int64_t count) {
  T local[kPanel];
  for (int r = 0; r < kPanel; ++r) local[r] = sums[r];
  for (int64_t c = 0; c < count; ++c) {
    const T* const row = panel + int64_t{changes[c].weight} * kPanel;
    const T by = static_cast<T>(changes[c].by);
    for (int r = 0; r < kPanel; ++r) local[r] += by * row[r];
  }
  for (int r = 0; r < kPanel; ++r) sums[r] = local[r];
}
