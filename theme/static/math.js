/* Text with formulas appears when these are drawn, so that nothing moves under the reader's eyes. It
   stands in the head, before the text; without a script nothing is hidden. */
"use strict";

{
  const page = document.documentElement.classList;
  const show = () => page.remove("formulas-to-come");
  page.add("formulas-to-come");
  addEventListener("DOMContentLoaded", () => setTimeout(() => document.fonts.ready.then(show)));
  setTimeout(show, 3000);
}
