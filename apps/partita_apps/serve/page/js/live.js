/** The reply that is being written: follows a run's events. Emits `live` ({kind, data, run}) on the store for every one. */

export function mountLive(app) {}
