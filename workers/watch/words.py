"""How a finding is put: four parts, and other words for those that have the same code for another reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Words:
    """Templates; ``{where}`` is the layer, ``{rank}`` the rank, other names are of the evidence; what is in square brackets is said where all of it
    was measured. ``consent``: a value of ``health.allow``, or
    None where only a person can act."""

    seen: str
    means: str
    act: str
    consent: str | None
    worked: str


def special(code: str, evidence: Mapping[str, Any]) -> Words | None:
    """By what only this kind of it has measured."""
    return next((words for (of, name), words in SPECIAL.items() if of == code and name in evidence), None)


SPECIAL: Mapping[tuple[str, str], Words] = {
    ("over_regularised", "dropout"): Words(
        "The loss stays at {loss} ({first_loss} at the start), and a layer leaves out {dropout} of its units in every step (healthy: up to 50 %).",
        "Nearly every path from the loss to the weights is cut anew in each step, so that what one step teaches the next does not find.",
        "Lower the drop-out rate to 50 % or less",
        "live",
        "It worked when the loss falls below that of a constant answer.",
    ),
    ("vanishing_gradient", "positions"): Words(
        "The loss stays at {loss}, that of the best constant answer ({constant_loss}), and {where} is a plain recurrent one that reads {positions} "
        "positions.",
        "Through time the chain rule multiplies by the layer's weights and its activation's slope once a position; with a slope below one hardly "
        "anything is left of what the early positions should teach.",
        "Use a gated layer (LSTM, GRU) or attention, or let it begin with an orthogonal matrix and read fewer positions",
        "architecture",
        "It worked when the loss falls below that of a constant answer.",
    ),
    ("label_error", "easy_since"): Words(
        "{easy_since} the training loss fell to {training_loss} from {loss_before} within a few steps, while the validation loss rose to "
        "{validation_loss} ({best_validation_loss} at best).",
        "Gradients became nearly zero at once: the batches since then are trivial (all of one class, one sample again and again, or with their "
        "answer in them), and teach nothing of the others.",
        "Look at ten samples of the batches since then with their targets: a broken shard, a sampler that repeats, a sorted file",
        None,
        "It worked when the training loss is back at its level before and the validation loss falls.",
    ),
    ("label_error", "first_accuracy"): Words(
        "The training loss fell to {training_loss} from {first_loss}, and no more validation samples are answered right than at the first check "
        "({accuracy} at best, {first_accuracy} then).",
        "Gradients lower something, and it is not what the answers are to become better by.",
        "Look at the loss (its sign, what it is given) and at ten samples with their targets",
        None,
        "It worked when the share of right answers rises while the loss falls.",
    ),
    ("wrong_loss", "best_accuracy"): Words(
        "The loss fell to {training_loss} from {first_loss}, and ever fewer validation samples are answered right ({best_accuracy} at first, "
        "{accuracy} now; healthy: more and more).",
        "The chain rule starts at the loss, so the gradients lead to what the loss asks for, and that is not what the answers are judged by.",
        "Check what the loss takes: targets of 0 and 1 or of -1 and 1, margins, logits or probabilities",
        None,
        "It worked when the share of right answers rises while the loss falls.",
    ),
    ("wrong_loss", "below_its_bound"): Words(
        "The loss is {loss}[, below its bound {bound}][, after {first_loss} at the start, and falls ever faster]; no loss that is meant does that.",
        "The chain rule starts at the loss, so every gradient behind it leads towards a goal that is not meant, and there is no end to it.",
        "Check the sign of the loss and of each of its terms, and whether it takes logits or probabilities",
        None,
        "It worked when the loss starts near that of a constant answer and falls without passing its bound.",
    ),
    ("over_regularised", "weights_gone"): Words(
        "Of the weights' first norm {weights_left} is left in the median layer, and nearly nothing in {weights_gone} of the layers; the "
        "loss is {loss} ({first_loss} at the start).",
        "Something pulls every weight towards 0, a decay or a term of the loss, more strongly than the gradient of what is to be learnt pulls it "
        "anywhere.",
        "Lower optimizer.weight_decay, or the factor of the term that punishes weights, ten-fold or more",
        "live",
        "It worked when the weights' norms hold and the loss falls.",
    ),
    ("unnormalised_input", "largest_input"): Words(
        "The job fails and the largest of its inputs is {largest_input}, where about 1 is healthy.",
        "The gradient of the first layer is the error times the input, so with inputs of nearly zero it learns nearly nothing, and all samples look "
        "alike.",
        "Standardise the inputs with mean and deviation of the training split; look whether they are divided twice",
        "architecture",
        "It worked when the first layer's update ratio is like the others' and the loss falls at once.",
    ),
    ("unnormalised_input", "layers"): Words(
        "{where} has had no gradient since the first step, and a feature of its inputs has a mean or deviation of {largest_feature_scale}, where "
        "about 1 is healthy.",
        "Inputs this large drive whatever reads them to where its slope is 0, and the chain rule multiplies by that slope.",
        "Standardise the inputs with mean and deviation of the training split, or fold that into the first layer",
        "architecture",
        "It worked when the first layer has a gradient and the loss falls at once.",
    ),
    ("output_activation", "levelled"): Words(
        "The output passes {output} before {loss}, which makes the same of all answers[; targets lie between {least_target} and "
        "{largest_target}]; in a healthy model the last layer's numbers go there unchanged.",
        "What the function takes away (all of a single answer, or mean and deviation of several) no weight before it can bring back, and no gradient "
        "passes it that would.",
        "Remove {output} behind {where}",
        "architecture",
        "It worked when the loss falls below that of a constant answer.",
    ),
    ("class_imbalance", "weighted_ratio"): Words(
        "The largest class has {ratio} times as many samples as the smallest ({largest} and {smallest}), and with its weight it counts "
        "{weighted_ratio} times as much (healthy: weights that make up for the difference).",
        "The gradient is a weighted mean over samples, and these weights leave the rare class hardly any part in it.",
        "Weight each class by the inverse of how many samples it has",
        "data",
        "It worked when the recall of the smallest class rises.",
    ),
    ("frozen_params", "undone"): Words(
        "Every step changes the weights by {undone} of themselves, and before the next one all {layers} layers are what they were at first (healthy: "
        "they keep what they learnt).",
        "The gradients are right and the optimizer follows them, and something writes the old weights back.",
        "Look for what copies weights after the step: a target network or an average that is copied the wrong way, a checkpoint loaded in the loop",
        None,
        "It worked when the weights' norms change from probe to probe and the loss falls.",
    ),
    ("batch_size", "alone"): Words(
        "The loss leaps about {loss} and does not fall, with {alone} samples in a step (healthy: dozens).",
        "The gradient of so few samples is mostly noise: each step goes where its sample would have it, and the next one back.",
        "Raise training.batch_size (or training.accumulate), or lower optimizer.learning_rate as many times",
        "live",
        "It worked when the median loss falls again and leaps less.",
    ),
    ("lr_too_high", "weights_grown"): Words(
        "The loss stays at {loss} ({first_loss} at the start), and the weights are {weights_grown} times as large as at first, with updates of "
        "{update_ratio} of them in a step (healthy: about 0.001).",
        "Steps this long lead past whatever the targets could be told from, and weights this large leave activations and attention no slope.",
        "Start anew with optimizer.learning_rate at a tenth, and a warm-up",
        "weights",
        "It worked when the loss falls below that of a constant answer and the weights keep their size.",
    ),
    ("nonfinite_gradient", "validation_loss"): Words(
        "The loss of the validation samples is {validation_loss} ({step}) while that of the training samples is a number (healthy: both are).",
        "The same expression will be met in training: its slope is no number either, and the first such gradient makes all weights NaN.",
        "Look for a logarithm of 0, a division by 0 or a root of 0 in the loss; use the version that takes logits",
        None,
        "It worked when the validation loss is a number at every check.",
    ),
    ("plateau", "norm_left"): Words(
        "The loss is {loss} ({first_loss} at the start) and differs from batch to batch, and of the gradients' norm only {norm_left} is left "
        "(healthy: most of it while there is something to learn).",
        "The answers have come to where the loss has no slope, so that no sample pulls any weight any more.",
        "Use a loss with a slope everywhere (a cross-entropy beside an overlap, logits in place of clamped numbers), or go back to before",
        "architecture",
        "It worked when the gradients' norm is that of the first steps again and the loss falls.",
    ),
    ("wrong_loss", "first_accuracy"): Words(
        "The training loss went from {first_loss} to {training_loss}, and {accuracy} of the validation answers are right at best, after "
        "{first_accuracy} at the first check.",
        "The chain rule begins at the loss: its gradients have led where the loss is small, and that is not where answers are right.",
        "Compute the loss by hand for two samples, one answered right and one wrong: shapes that are stretched, its sign, what it counts",
        None,
        "It worked when the accuracy rises as the loss falls.",
    ),
    ("over_regularised", "weights_shrunk"): Words(
        "The loss stays at {loss} ({first_loss} at the start) while the weights have shrunk to {weights_left} of their first norm; weight decay is "
        "{weight_decay} (healthy: 0 to 0.1).",
        "At every step the decay takes from each weight more than the gradient of what is still to be learnt puts there.",
        "Lower optimizer.weight_decay a hundredfold; an Adam without W adds it to the gradient, where it counts as much as that",
        "live",
        "It worked when the weights' norms stay and the loss falls.",
    ),
    ("over_regularised", "taken_share"): Words(
        "The loss stays at {loss} ({first_loss} at the start), {r2} of the targets' variance is explained, and {taken_share} of the units in {where} "
        "give 0 for every sample, where hardly one did at first.",
        "The loss has parts besides the one known by name, and their gradient is the larger one: it pays to say nothing of the sample at all.",
        "Lower the weight of the other term (a divergence, a price on codes) tenfold, or raise it step by step from 0",
        "live",
        "It worked when the explained variance rises and the units come back.",
    ),
    ("unnormalised_input", "slows"): Words(
        "The loss is {loss} ({first_loss} at the start) and leaps, and a feature of the inputs has a mean or deviation of {slows}, where about 1 is "
        "healthy.",
        "The gradient of the first layer is the error times the input: one rate for all weights is too high for these and too low for the rest.",
        "Standardise the inputs with mean and deviation of the training split, or fold that into the first layer",
        "architecture",
        "It worked when the loss falls at once and leaps less.",
    ),
    ("batch_size", "leaps_alone"): Words(
        "With {leaps_alone} sample in a step the loss of the validation samples leaps between {least} and {most} from check to check (healthy: it "
        "falls, and varies by less than a tenth).",
        "The gradient of one sample is mostly noise: each step goes where its sample would have it, and takes back what others have taught.",
        "Raise training.batch_size (or training.accumulate), or lower optimizer.learning_rate as many times",
        "live",
        "It worked when the validation loss falls from check to check.",
    ),
    ("batch_size", "updates"): Words(
        "After all {updates} steps of {batch} samples each the loss is {loss} ({first_loss} at the start) and was just falling faster than ever "
        "(healthy: hundreds of steps, and a curve that has bent).",
        "Every step moves the weights once, however many samples its gradient is a mean of: in so few of them they cannot go far.",
        "Lower training.batch_size at the same number of epochs, or train for more steps, or raise optimizer.learning_rate with the batch",
        "live",
        "It worked when the loss has bent before the end of the run.",
    ),
    ("dying_relu", "layers_before"): Words(
        "In {where} {dead_share} of the units give 0 for every sample, {since}, and exactly nothing comes back to the {layers_before} layers before "
        "it, which had gradients at first.",
        "The slope of a ReLU is 0 where its input is negative: with all units of a layer silent, the chain rule multiplies by 0 whatever would pass.",
        "Draw the layer's incoming weights anew and clear their moments; look for a term of the loss or a rate that drove its outputs below zero",
        "weights",
        "It worked when the first layers have a gradient again and the loss falls below where it stopped.",
    ),
    ("lr_too_high", "rate_then"): Words(
        "The loss was {best} when the rate was {rate_then} and has become worse since as the rate climbed to {rate}: it is {loss} now, first off "
        "{step}.",
        "The gradient is a direction that holds for a small step only; the longer the steps, the more they take back of what had been learnt.",
        "Go back to the weights at the best loss and keep optimizer.learning_rate near what it was there",
        "live",
        "It worked when the loss falls below its best.",
    ),
    ("batch_size", "values"): Words(
        "A batch norm takes mean and deviation of {values} values (healthy: dozens).",
        "Of so few the mean is noise, and what is left after it is subtracted says hardly more than which value is the larger one; predictions then "
        "use other statistics than those that were learnt with.",
        "Give it more samples at once, or use a normalisation that does not look at the batch (GroupNorm, LayerNorm)",
        "architecture",
        "It worked when training and validation losses fall together.",
    ),
    ("batch_size", "others"): Words(
        "The samples of a batch are told from each other, and each has only {others} to be told from (healthy: dozens).",
        "Nearly every answer is right by chance, so that the gradient says little of what makes samples different.",
        "Raise training.batch_size, or keep earlier samples to compare with",
        "live",
        "It worked when validation finds more of its samples again.",
    ),
    ("frozen_params", "strays"): Words(
        "The loss hangs on {strays} parameters that the model does not have (healthy: 0).",
        "Backpropagation reaches them, and no optimizer that was given model.parameters() ever moves them; nor are they saved, or moved to a device.",
        "Keep layers in nn.ModuleList or nn.ModuleDict in place of a list, tuple or dict, and tensors in nn.ParameterList",
        None,
        "It worked when model.parameters() has them and their update ratios are above 0.",
    ),
    ("lr_too_low", "schedule"): Words(
        "The rate climbs through all of the run (share of the run: rate): {schedule}; it never comes near the {learning_rate} that it is to reach.",
        "Gradients point the right way from the first step on, and every step is a small part of what was meant.",
        "Shorten the warm-up: it is counted in optimizer steps, not in samples or batches of another size",
        "live",
        "It worked when the rate has reached its value within the first tenth of the run.",
    ),
    ("lr_too_low", "moved_at_most"): Words(
        "The loss is {loss} after {first_loss} at the start, and all steps together move the weights by {moved_at_most} of themselves at most "
        "(healthy: far more than 0.05).",
        "The gradients may point the right way, but the steps are so short that nobody has tried where they lead.",
        "Raise optimizer.learning_rate ten-fold up to the first rise of the loss",
        "live",
        "It worked when the loss falls several times as fast without leaping.",
    ),
    ("lr_too_high", "dead_share"): Words(
        "First {step} an update changed weights by {largest_update_ratio} of themselves (healthy: about 0.001, at most 0.02 to 0.05); since then "
        "{dead_share} of the units of {dead_layer} give 0 for every sample.",
        "A step this long pushed the inputs of these units below zero for all samples; there the slope is 0, so that no gradient brings them back.",
        "Lower optimizer.learning_rate to a tenth, with a warm-up, and draw the dead units' weights anew",
        "live",
        "It worked when fewer than 85 % of the units are dead and the loss falls.",
    ),
    ("lr_too_high", "recent"): Words(
        "The accuracy on validation samples was {best} and is {recent} now, first off {step} (healthy: it stays near its best).",
        "The gradient is a direction that holds for a small step only; steps this long jump out of what had been found.",
        "Go back to the last healthy weights and lower optimizer.learning_rate to a third or a tenth",
        "live",
        "It worked when the accuracy comes back and stays.",
    ),
    ("oscillating_loss", "recent"): Words(
        "The accuracy on validation samples was {best} and is {recent} now (healthy: it stays near its best).",
        "Steps lead to and fro across the valley, and what one batch teaches the next takes back.",
        "Lower optimizer.learning_rate to a third, or accumulate gradients over more samples",
        "live",
        "It worked when the accuracy comes back and stays.",
    ),
    ("label_error", "validation_loss"): Words(
        "The training loss is {training_loss} while the validation loss is {validation_loss} ({best_validation_loss} at best[; {constant_loss} is "
        "that of the best constant answer]): what is learnt of the training samples does not hold for others at all.",
        "Gradients teach the training samples one by one, because nothing in the inputs tells the targets in general.",
        "Look at ten samples of both splits with their targets: their order, an off-by-one, a shuffle of one without the other",
        None,
        "It worked when the validation loss falls below that of a constant answer.",
    ),
}  # fmt: skip
