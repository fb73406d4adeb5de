"""The page around a report's sections, its style sheet included: no script, nothing loaded."""

from __future__ import annotations

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #ffffff; --band: #f4f6f8;
 --right: #1a7f37; --wrong: #b42318; --bar: #0072b2; --link: #0758a8; }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ --ink: #e6edf3; --soft: #9aa4af;
 --line: #3a424b; --paper: #12161b; --band: #1b2128; --right: #4ac26b; --wrong: #ff8a7a;
 --bar: #56b4e9; --link: #7cc4ff; }} }}
* {{ box-sizing: border-box; }}
body {{ max-width: 76rem; margin: 1.5rem auto; padding: 0 1rem; background: var(--paper);
 color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: 0; }}
h2 {{ margin: 2.4rem 0 .8rem; border-bottom: 1px solid var(--line); font-size: 1.3rem; }}
h3 {{ margin: 1.6rem 0 .4rem; font-size: 1.05rem; }}
h2, h3, p.before {{ break-after: avoid; }}
p {{ margin: .5rem 0; }}
a {{ color: var(--link); }}
code {{ background: var(--band); padding: .1em .3em; }}
.soft, caption, .none {{ color: var(--soft); font-size: .9rem; }}
caption {{ caption-side: bottom; text-align: left; padding-top: .4rem; }}
.right {{ color: var(--right); font-weight: 600; }}
.wrong {{ color: var(--wrong); font-weight: 600; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem;
 list-style: none; margin: 1.2rem 0 1rem; padding: 0; }}
.cards li {{ border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .9rem .7rem; }}
.cards b {{ display: block; font-size: 2rem; line-height: 1.3; }}
.cards span {{ display: block; font-size: .9rem; line-height: 1.35; color: var(--soft); }}
.cards .name {{ color: var(--ink); font-weight: 600; }}
.wide {{ overflow-x: auto; }}
.wide + .wide {{ margin-top: 1.2rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .55rem; text-align: right; white-space: nowrap; overflow-wrap: normal; }}
thead th {{ font-weight: 600; font-size: .9rem; vertical-align: bottom; }}
thead th[scope=colgroup] {{ text-align: center; color: var(--soft); }}
thead {{ border-bottom: 2px solid var(--line); }}
tbody tr:nth-child(odd) {{ background: var(--band); }}
tbody tr.mean > * {{ border-top: 2px solid var(--line); font-weight: 600; }}
thead tr:first-child th:first-child, th[scope=row] {{ text-align: left; }}
tbody th {{ font-weight: 500; }}
tr > .text {{ white-space: normal; overflow-wrap: break-word; }}
.facts td, .facts th {{ white-space: normal; text-align: left; overflow-wrap: anywhere; }}
.facts th {{ width: 14rem; }}
.bar {{ display: inline-block; position: relative; width: 5rem; height: .7rem;
 background: var(--line); vertical-align: baseline; }}
.bar b {{ position: absolute; top: calc(50% - 1px); height: 0;
 border-top: 2px solid var(--ink); }}
.bar i {{ display: block; height: 100%; background: var(--bar); }}
.ends i {{ opacity: .5; }}
.charts {{ display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem 1.5rem;
 align-items: start; }}
.charts > * {{ break-inside: avoid; }}
img, svg {{ max-width: 100%; height: auto; display: block; }}
td small {{ display: block; font-size: .72rem; font-weight: 400; line-height: 1.25;
 color: var(--soft); }}
table.metrics th, table.metrics td {{ padding: .25rem .4rem; }}
figure {{ display: grid; grid-template-columns: repeat(4, minmax(0, 12rem)) minmax(11rem, 1fr);
 gap: .5rem; margin: 0 0 .6rem; align-items: center; break-inside: avoid; }}
figure img {{ width: 100%; }}
h4 {{ margin: 1rem 0 .4rem; font-size: 1rem; }}
details.every {{ margin: 1.4rem 0; border: 1px solid var(--line); border-radius: .4rem;
 padding: .5rem .9rem; }}
summary {{ cursor: pointer; font-weight: 600; }}
.filters {{ display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(6.4rem, 1fr)); gap: .5rem;
 margin: .4rem 0 1rem; }}
figure.one {{ display: block; margin: 0; min-width: 0; border: 2px solid transparent; }}
.every figure.one {{ content-visibility: auto; contain-intrinsic-size: auto 6.4rem auto 9.2rem; }}
figure.one img {{ width: 6rem; height: 6rem; object-fit: contain; margin: 0 auto;
 background: var(--band); }}
figure.one figcaption {{ padding: .15rem .1rem; font-size: .72rem; line-height: 1.25;
 color: var(--soft); text-align: center; }}
figure.one figcaption b {{ color: var(--wrong); }}
figure.one span {{ display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
 direction: rtl; }}
figure.wrong-one {{ border-color: var(--wrong); }}
details:has(.show-wrong:checked) figure.one:not(.wrong-one),
details:has(.show-found:checked) figure.one:not(.flagged) {{ display: none; }}
figure.head {{ font-size: .9rem; color: var(--soft); margin: 0 0 .2rem; break-after: avoid; }}
figcaption {{ padding-left: .5rem; font-size: .9rem; line-height: 1.4; }}
.none {{ text-align: center; }}
.scale {{ max-width: 26rem; margin: 1rem 2rem 3rem; }}
.scale img {{ width: 100%; height: .9rem; }}
.scale .above {{ height: 1.7rem; }}
.scale .above span {{ bottom: 0; }}
.scale .above span::before {{ content: none; }}
.scale .above span::after {{ content: "|"; display: block; font-size: .5rem; line-height: 1; }}
.scale div {{ position: relative; text-align: center; font-size: .85rem; color: var(--soft); }}
.scale span {{ position: absolute; transform: translateX(-50%); white-space: nowrap; }}
.scale span::before {{ content: "|"; display: block; font-size: .5rem; line-height: 1; }}
@media screen and (max-width: 48rem) {{
 .charts {{ grid-template-columns: minmax(0, 1fr); }}
 figure {{ grid-template-columns: repeat(2, minmax(0, 1fr)); margin-bottom: 1.4rem; }}
 figure.head {{ display: none; }}
 figcaption {{ grid-column: 1 / -1; padding: 0; }}
 .facts th {{ width: 8rem; }} }}
@page {{ size: A4; margin: 14mm; }}
@media print {{ :root {{ font-size: 9.5pt; }} body {{ max-width: none; margin: 0; padding: 0; }}
 th, td {{ padding: .15rem .4rem; }} .wide {{ overflow: visible; }}
 h2 {{ margin-top: 1.6rem; }} h2 + p {{ break-after: avoid; }} tr {{ break-inside: avoid; }}
 figure {{ grid-template-columns: repeat(4, 3.3cm) 1fr; }}
 details.every {{ display: none; }} td small {{ font-size: .66rem; }}
 a {{ color: inherit; text-decoration: none; }}
 * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
