(* What the main theorems of each file rest on together; `check.sh` reads this output and compares it with its list of
   allowed axioms. One print per file: a print takes most of a second. *)
From EntropyTheory Require Policy Discriminant Gradient FirstOrder DiscriminantGradient ExactIdentity Baseline Covariances StepBound SignTheorem Concavity TwoValued PassRate SingleLogit SingleLogitSign ManySmallSteps.

Definition of_Policy :=
  (@Policy.every_policy_is_a_softmax, @Policy.of_size_size, @Policy.KL_nonneg, @Policy.KL_zero).
Print Assumptions of_Policy.

Definition of_Discriminant :=
  (@Discriminant.discriminant_in_logits, @Discriminant.discriminants_sum_to_zero).
Print Assumptions of_Discriminant.

Definition of_Gradient :=
  (@Gradient.entropy_partial_derivative, @Gradient.entropy_gradient, @Gradient.entropy_chain_rule).
Print Assumptions of_Gradient.

Definition of_FirstOrder :=
  (@FirstOrder.lemma_3_1_same, @FirstOrder.lemma_3_1_other, @FirstOrder.theorem_3_2,
   @FirstOrder.theorem_3_2_sign, @FirstOrder.theorem_3_3, @FirstOrder.corollary_3_4).
Print Assumptions of_FirstOrder.

Definition of_DiscriminantGradient :=
  (@DiscriminantGradient.discriminant_partial_derivative, @DiscriminantGradient.baseline_partial_derivative,
   @DiscriminantGradient.discriminant_lower_bound).
Print Assumptions of_DiscriminantGradient.

Definition of_ExactIdentity :=
  @ExactIdentity.exact_identity.
Print Assumptions of_ExactIdentity.

Definition of_Baseline :=
  (@Baseline.baseline_nonneg, @Baseline.baseline_zero_iff_uniform, @Baseline.centred_positive_needs_likely,
   @Baseline.likeliest_token_positive).
Print Assumptions of_Baseline.

Definition of_Covariances :=
  (@Covariances.expected_change, @Covariances.two_covariances, @Covariances.entropy_bonus,
   @Covariances.kept_tokens_covariance).
Print Assumptions of_Covariances.

Definition of_StepBound :=
  (@StepBound.step_bound, @StepBound.step_bound_equality, @StepBound.step_bound_denominator,
   @StepBound.sampled_token_gains).
Print Assumptions of_StepBound.

Definition of_SignTheorem :=
  (@SignTheorem.one_sided_sign_theorem, @SignTheorem.grpo_sign_theorem, @SignTheorem.one_sided_sign_equality,
   @SignTheorem.strict_descent_forward, @SignTheorem.strict_descent_backward).
Print Assumptions of_SignTheorem.

Definition of_Concavity :=
  (@Concavity.entropy_concave, @Concavity.concave_up_to_1, @Concavity.mean_log_prob_convex,
   @Concavity.unimodal_rise, @Concavity.falls_for_good_forward, @Concavity.falls_for_good_backward).
Print Assumptions of_Concavity.

Definition of_TwoValued :=
  (@TwoValued.conditional_entropy_bounds, @TwoValued.chain_rule, @TwoValued.discriminants_of_a_set,
   @TwoValued.pass_rate, @TwoValued.entropy_in_the_pass_rate, @TwoValued.peak, @TwoValued.below_the_peak,
   @TwoValued.rises_up_to_the_peak, @TwoValued.falls_beyond_the_peak, @TwoValued.exact_change,
   @TwoValued.KL_of_a_step, @TwoValued.two_valued_sign_theorem).
Print Assumptions of_TwoValued.

Definition of_PassRate :=
  (@PassRate.kl_regularised_optimum, @PassRate.pass_rate_law, @PassRate.pass_rate_of_the_optimum,
   @PassRate.entropy_slope_in_the_pass_rate, @PassRate.entropy_rises_below_the_threshold,
   @PassRate.entropy_falls_above_the_threshold).
Print Assumptions of_PassRate.

Definition of_SingleLogit :=
  (@SingleLogit.what_surrounds_the_token, @SingleLogit.entropy_of_the_rest_is,
   @SingleLogit.entropy_of_the_rest_bounds, @SingleLogit.probability_of_the_token,
   @SingleLogit.probability_of_another_token, @SingleLogit.exact_single_logit_law,
   @SingleLogit.divergence_of_one_logit, @SingleLogit.change_in_two_parts).
Print Assumptions of_SingleLogit.

Definition of_SingleLogitSign :=
  (@SingleLogitSign.predicted_fall_is_a_fall, @SingleLogitSign.peak_of_one_logit,
   @SingleLogitSign.rise_of_an_unlikely_token, @SingleLogitSign.rise_of_a_likely_token,
   @SingleLogitSign.rise_without_flip, @SingleLogitSign.no_flip_condition, @SingleLogitSign.limit_of_lowering,
   @SingleLogitSign.no_rise_at_the_boundary).
Print Assumptions of_SingleLogitSign.

Definition of_ManySmallSteps :=
  (@ManySmallSteps.boundary_lemma, @ManySmallSteps.fall_region_is_never_left,
   @ManySmallSteps.fall_region_is_never_left_down, @ManySmallSteps.many_small_steps).
Print Assumptions of_ManySmallSteps.
