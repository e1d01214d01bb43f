/** Numbers and times as a person reads them, in the words of the rest of partita. Touches no document. */

const DECIMAL = ["bytes", "kB", "MB", "GB", "TB"];
const BINARY = ["bytes", "KiB", "MiB", "GiB", "TiB"];

/** Bytes of a file: "98.4 MB". */
export function diskSize(count) {
  return scaled(count, 1000, DECIMAL);
}

/** Bytes in memory: "2.0 GiB". */
export function memorySize(count) {
  return scaled(count, 1024, BINARY);
}

/** "1,234". */
export function count(number) {
  return Math.round(number).toLocaleString("en");
}

/** "1 chat", "3 chats". */
export function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

/** A time of the past, in seconds since 1970: "14:05" today, "3 May" this year, "3 May 2024" before that. */
export function when(seconds, now = new Date()) {
  const then = new Date(seconds * 1000);
  if (isToday(seconds, now)) return then.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  const year = then.getFullYear() === now.getFullYear() ? undefined : "numeric";
  return then.toLocaleDateString("en-GB", { day: "numeric", month: "short", year });
}

export function isToday(seconds, now = new Date()) {
  return new Date(seconds * 1000).toDateString() === now.toDateString();
}

function scaled(number, base, units) {
  let value = number;
  for (const unit of units) {
    if (value < base - 0.5 || unit === units.at(-1)) {
      return `${value.toFixed(unit === units[0] || value >= 99.95 ? 0 : 1)} ${unit}`;
    }
    value /= base;
  }
}
