"""The look of the page: light or dark as the reader's system is, on a phone or a wide screen."""

STYLE = """
:root { color-scheme: light dark; --pass: #1a7f37; --fail: #c62828; --doubt: #9a6700; --line: #8884; --dim: #8882;
  --paper: #fff; --one: #0b62c4; --two: #a8530c; }
@media (prefers-color-scheme: dark) { :root { --pass: #4ac26b; --fail: #ff6b60; --doubt: #d4a72c; --paper: #1c1c1c;
  --one: #6cb2ff; --two: #ffa657; } }
* { box-sizing: border-box; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 70rem;
  background: var(--paper); }
h1, h2, h3, h4, p { overflow-wrap: anywhere; } h4 { margin: 1.2rem 0 .3rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .25rem .5rem; border-bottom: 1px solid var(--line); }
td, th { overflow-wrap: anywhere; }
.criteria thead th { overflow-wrap: normal; } .criteria td:last-child { min-width: 8rem; }
td.pass, td.fail, td.inconclusive { white-space: nowrap; }
.limit { white-space: nowrap; } .number { text-align: right; font-variant-numeric: tabular-nums; }
.pass { color: var(--pass); } .fail { color: var(--fail); font-weight: 600; }
.inconclusive { color: var(--doubt); } .not-applicable { opacity: .65; }
pre { white-space: pre-wrap; overflow-wrap: anywhere;
  padding: .6rem; border: 1px solid var(--line); border-radius: .3rem; font-size: .85rem; }
.bar { display: flex; height: 1rem; border-radius: .2rem; overflow: hidden; }
.bar span { min-width: 3px; }
.good { background: var(--pass); } .bad { background: var(--fail); } .open { background: var(--doubt); }
details { margin: 1rem 0; } summary { cursor: pointer; } summary h3 { display: inline; }
td details, th details { margin: 0; }
.note { opacity: .8; font-size: .9rem; }
.map fieldset { border: 0; border-left: 3px solid var(--line); margin: .6rem 0; padding: 0 0 0 .6rem; min-width: 0; }
.map legend { padding: 0; font-size: .9rem; }
.cells { display: flex; flex-wrap: wrap; gap: 3px; position: relative; }
.cells label, .key b { width: 17px; height: 17px; border-radius: 3px; font: bold 12px/17px system-ui, sans-serif;
  text-align: center; color: var(--paper); cursor: pointer; }
.cells label.after { margin-left: -3px; border-radius: 0 3px 3px 0; border-left: 1px solid var(--paper); }
.cells label.untried, .key .untried { background: var(--dim); border: 1px solid var(--line); }
.cells label:not(.none):has(:checked) { outline: 3px solid var(--two); }
.cells label:focus-within, .cells label:hover { outline: 3px solid var(--one); z-index: 2; }
.cells input { position: absolute; opacity: 0; width: 17px; height: 17px; margin: 0; cursor: pointer; }
.cells label > span { position: absolute; left: 0; right: 0; margin-top: 22px; height: 1px; overflow: hidden;
  clip-path: inset(50%); pointer-events: none; text-align: left; font: .85rem/1.4 system-ui, sans-serif;
  color: CanvasText; background: Canvas; border-radius: .3rem; overflow-wrap: anywhere; }
.cells input:checked + span, .cells input:focus + span, .cells label:hover > span { height: auto; clip-path: none;
  padding: .4rem .6rem; border: 2px solid var(--one); z-index: 3; }
.cells input:checked + span { pointer-events: auto; cursor: text; } .cells label:hover > span { z-index: 4; }
.cells code { display: block; user-select: all; }
.cells small { align-self: center; opacity: .8; }
.cells label.none { width: auto; background: none; color: inherit; font: .85rem/17px system-ui, sans-serif; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; list-style: none; font-size: .9rem; }
.key b { display: inline-block; cursor: default; vertical-align: middle; }
.lives { table-layout: fixed; } .lives th { width: 38%; font-weight: normal; } .lives th small { opacity: .8; }
.lives td, .lives th { padding: .1rem .3rem; } .lives svg { display: block; width: 100%; height: 1.4rem; }
.bands { display: flex; font-size: .8rem; }
.bands span { min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  border-left: 1px solid var(--line); padding-left: 2px; }
.alive { fill: var(--one); background: var(--one); } .stays { fill: var(--two); background: var(--two); }
.cut { stroke: var(--fail); stroke-width: 2; }
.border { stroke: var(--line); stroke-width: 1; } .cut, .border, .curve { vector-effect: non-scaling-stroke; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .9rem; }
.plot { display: grid; grid-template-columns: auto 1fr; font-size: .8rem; gap: 0 .3rem; }
.plot svg { width: 100%; height: 8rem; border-left: 1px solid var(--line); border-bottom: 1px solid var(--line);
  overflow: visible; grid-row: span 2; grid-column: 2; }
.plot .low { align-self: end; grid-row: 2; }
.plot .time { grid-column: 2; display: flex; justify-content: space-between; }
.curve { fill: none; stroke: var(--one); stroke-width: 2; } .second { stroke: var(--two); stroke-dasharray: 5 3; }
.first-name { color: var(--one); } .second-name { color: var(--two); }
"""
