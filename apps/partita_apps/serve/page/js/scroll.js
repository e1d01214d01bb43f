/**
 * Keeps the newest text in view until a person scrolls up, and leads back to it.
 *
 * Holds always: the page scrolls by itself only where the end was in view; one step up by wheel, finger or key ends that,
 * and coming back to the end begins it again.
 */

import { h, icon } from "./dom.js";

const NEAR = 48; // pixels from the end that count as the end

/** scroller: the element that scrolls; content: what grows in it. Returns {toEnd, pinned, release, button}. */
export function followEnd(scroller, content) {
  let pinned = true;
  let last = 0;
  const button = h("button", { type: "button", class: "jump", hidden: true, onClick: () => toEnd(true) }, icon("down"), h("span", {}, "Jump to latest"));
  const left = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  const show = () => {
    button.hidden = pinned || left() < NEAR * 2;
    scroller.parentElement.classList.toggle("scrolled", scroller.scrollTop > 8);
  };
  const stick = () => {
    if (pinned) scroller.scrollTop = scroller.scrollHeight;
    last = scroller.scrollTop;
    show();
  };
  const toEnd = (smoothly = false) => {
    pinned = true;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (smoothly && !calm && left() < scroller.clientHeight * 3) scroller.scrollTo({ top: scroller.scrollHeight, behavior: "smooth" });
    else requestAnimationFrame(stick); // not now: that would lay out the page twice
    button.hidden = true;
  };
  const release = () => {
    pinned = false;
    show();
  };
  scroller.addEventListener(
    "scroll",
    () => {
      const top = scroller.scrollTop;
      if (left() < NEAR) pinned = true;
      else if (top < last - 1) pinned = false;
      last = top;
      show();
    },
    { passive: true },
  );
  scroller.addEventListener("wheel", (event) => event.deltaY < 0 && scroller.scrollHeight > scroller.clientHeight && release(), { passive: true });
  new ResizeObserver(stick).observe(content);
  new ResizeObserver(stick).observe(scroller);
  return { toEnd, release, button, pinned: () => pinned };
}
