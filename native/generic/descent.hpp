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

// Pairs: reals in double, always in this order, so that every instruction set, and PyTorch, round them alike.

constexpr double kWhole = 6755399441055744.0;  // 1.5 * 2^52: adding it and taking it away rounds to an integer
constexpr double kLeast = 1e-9;                // of a weight's curvature: what a change must gain

template <class T>
static void fit_gradient(const Pairs<T>& l, const PairsOutput<T>& o, double sum) {
  for (int64_t r = 0; r < l.inputs; ++r)
    o.gradient[r] = o.scale * (static_cast<double>(o.product[r]) - l.mean[r] * sum) - o.wanted[r];
}

template <class T>
static void change(const Pairs<T>& l, const PairsOutput<T>& o, int64_t input, double by, double& sum) {
  const T* const row = l.gram + input * l.inputs;
  const T times = static_cast<T>(by);
  T* const product = o.product;
  for (int64_t r = 0; r < l.inputs; ++r) product[r] += times * row[r];
  o.weight[input] += by;
  sum += l.sum[input] * by;
}

template <class T>
static int64_t improve_pairs(const Pairs<T>& l, const PairsOutput<T>& o) {
  double sum = o.sum;
  const double inverse_scale = 1.0 / o.scale, inverse_step = 1.0 / l.step;
  int64_t changed = 0;
  fit_gradient(l, o, sum);
  for (int64_t i = 0; i < l.inputs; ++i) {
    const double steepness = o.scale * l.curvature[i];
    if (!(steepness > 0)) continue;
    const int32_t* const partner = l.partner + i * kPartners;
    const double* const covariance = l.covariance + i * kPartners;
    double weight[kPartners], gradient[kPartners], curvature[kPartners], inverse[kPartners];
    for (int k = 0; k < kPartners; ++k) {
      const int32_t j = partner[k];
      weight[k] = o.weight[j];
      gradient[k] = o.gradient[j];
      curvature[k] = o.scale * l.curvature[j];
      inverse[k] = l.inverse[j] * inverse_scale;
    }
    double best = -kLeast * steepness, best_by = 0, best_partner_by = 0;
    int best_partner = 0;
    for (int steps = -2; steps <= 2; ++steps) {
      const double by = steps * l.step, value = o.weight[i] + by;
      if (steps == 0 || value < -l.top || value > l.top) continue;
      const double alone = by * (steepness * by + 2.0 * o.gradient[i]), pull = o.scale * by;
      double partner_by[kPartners], gain[kPartners];
      for (int k = 0; k < kPartners; ++k) {
        const double slope = gradient[k] + pull * covariance[k];
        double wanted = weight[k] - slope * inverse[k];
        wanted = wanted < -l.top ? -l.top : wanted;
        wanted = wanted > l.top ? l.top : wanted;
        const double level = ((wanted + l.top) * inverse_step + kWhole - kWhole) * l.step - l.top;
        partner_by[k] = level - weight[k];
        gain[k] = partner_by[k] * (curvature[k] * partner_by[k] + 2.0 * slope);
      }
      double least = 0;
      for (int k = 0; k < kPartners; ++k) least = gain[k] < least ? gain[k] : least;
      if (!(alone + least < best)) continue;
      best = alone + least;
      best_by = by;
      best_partner_by = 0;
      if (!(least < 0)) continue;
      best_partner = 0;
      while (gain[best_partner] != least) ++best_partner;
      best_partner_by = partner_by[best_partner];
    }
    if (best_by == 0) continue;
    ++changed;
    change(l, o, i, best_by, sum);
    if (best_partner_by != 0) change(l, o, partner[best_partner], best_partner_by, sum);
    fit_gradient(l, o, sum);
  }
  return changed;
}
