/** Fine-tuning in words: states, phases, times, numbers. Touches no document. */

export const STATES = {
  running: "Running",
  done: "Done",
  stopped: "Stopped",
  failed: "Failed",
  interrupted: "Interrupted",
};

/** "40 s", "3 min", "1 h 5 min". */
export function duration(seconds) {
  if (seconds < 1) return "1 s";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const rest = minutes % 60;
  return `${Math.floor(minutes / 60)} h${rest ? ` ${rest} min` : ""}`;
}

/** A loss: "4.719". */
export function loss(value) {
  return value === null || value === undefined ? "–" : value.toFixed(3);
}

/** What a run is doing, of the event `phase`. */
export function phase({ what, done, total }) {
  const known = {
    starting: "Starting a process for the run",
    memory: "Making room in memory",
    "samples before training": "Asking the untrained model for samples",
    "samples after training": "Asking the trained model for samples",
    training: "Training",
    stopping: "Finishing this step, then saving",
    saving: "Saving",
    step: "Training",
    validation: "Measuring the validation loss",
  };
  const text = known[what] ?? `${what[0].toUpperCase()}${what.slice(1)}`;
  if (what === "step") return total > 1 ? `${text}: batch ${Math.min(done + 1, total)} of ${total}` : text;
  if (total) return `${text}: ${Math.round((100 * done) / total)} %`;
  return done && what === "validation" ? `${text}: batch ${done + 1}` : text;
}

/** What a run can be asked for now, beside its state. */
export function resumable(run) {
  return ["stopped", "interrupted", "failed"].includes(run.state);
}

/** Settings that a person chose, as a line. */
export function chosen(settings) {
  const names = {
    rank: "rank",
    steps: "steps",
    epochs: "epochs",
    learning_rate: "learning rate",
    max_length: "longest text",
    batch_size: "batch",
    accumulate: "accumulated",
  };
  const said = Object.entries(names).filter(([name]) => settings[name] !== undefined && settings[name] !== null);
  return said.map(([name, text]) => `${text} ${settings[name]}`).join(", ");
}
