/* Text with formulas appears when these are drawn, so that nothing moves under the reader's eyes, and
   those that are too wide can be scrolled by keyboard. It stands in the head, before the text; without
   a script nothing is hidden. */
"use strict";

{
  const page = document.documentElement.classList;
  const show = () => {
    page.remove("formulas-to-come");
    reach();
  };
  const reach = () => {
    for (const formula of document.querySelectorAll("div.math > span")) {
      if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
      else formula.removeAttribute("tabindex");
    }
  };
  page.add("formulas-to-come");
  addEventListener("DOMContentLoaded", () => setTimeout(() => document.fonts.ready.then(show)));
  addEventListener("resize", reach);
  setTimeout(show, 3000);
}
