"""The status page's style sheet, for light and dark."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root{--paper:#fbfbfa;--card:#fff;--ink:#1c2024;--soft:#5b6570;--rule:#dfe3e6;--proposal:#0b62c4;
--weight:#b4540a;--prior:#6b7680;--good:#12714a;--warn:#9a5b00}
@media (prefers-color-scheme:dark){:root{--paper:#14171a;--card:#1c2125;--ink:#e7eaed;
--soft:#a3adb6;--rule:#323a41;--proposal:#6db1ff;--weight:#f2a35e;--prior:#97a3ad;--good:#5ecb9a;
--warn:#f0b24d}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1.25rem;background:var(--paper);color:var(--ink);
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
font-variant-numeric:tabular-nums}
h1{font-size:1.5rem;margin:0}
h2{font-size:1.1rem;margin:0 0 .75rem}
h2 small{font-weight:400;color:var(--soft)}
.note,figcaption,caption{color:var(--soft);font-size:.875rem}
.note{margin:.25rem 0}
.state{font-size:.875rem;font-weight:600;padding:.1rem .55rem;border:1.5px solid;border-radius:1rem;
vertical-align:.2rem;color:var(--warn)}
.state.serving{color:var(--good)}
main>dl,section{background:var(--card);border:1px solid var(--rule);border-radius:.5rem;
padding:1rem;margin:1rem 0}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(7.5rem,1fr));gap:.75rem 1rem;margin:0}
section dl{margin-bottom:1rem}
dt{color:var(--soft);font-size:.8125rem}
dd{margin:0;font-size:1.1rem;font-weight:600}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem}
caption{text-align:left;padding-bottom:.35rem}
th,td{text-align:right;padding:.3rem .6rem;border-top:1px solid var(--rule);white-space:nowrap}
thead th{border-top:0;color:var(--soft);font-weight:500}
th:first-child,td:first-child{text-align:left;padding-left:0}
tbody th{font-weight:600}
figure{margin:1.25rem 0 0}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:11px}
svg .title{fill:var(--ink);font-size:12px}
svg .grid{stroke:var(--rule)}
svg polyline{fill:none;stroke-width:2;stroke-linejoin:round}
svg .norm,svg .proposal{stroke:var(--proposal);stroke-width:2}
svg .weight{stroke:var(--weight);stroke-width:1.75;stroke-dasharray:6 3}
svg .prior{stroke:var(--prior);stroke-width:1.75;stroke-dasharray:2 3}
svg .bin{stroke:var(--ink);stroke-width:3}
""".strip()
