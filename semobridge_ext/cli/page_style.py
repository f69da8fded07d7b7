"""The look of every HTML page of the command line: light and dark, from 320 pixels on, without JavaScript."""

from __future__ import annotations

# Text has a contrast of 4.5 and a mark one of 3 on its ground, in both schemes; a test computes them.
LIGHT = {
    "ground": "#ffffff", "ink": "#1f2328", "soft": "#57606a", "line": "#c9d1d9", "faint": "#f3f5f7",
    "link": "#0b5cad", "c0": "#0072b2", "c1": "#b35900", "c2": "#00785a", "c3": "#a8477f", "c4": "#c0392b",
    "c5": "#0e7490", "c6": "#555555",
}  # fmt: skip
DARK = {
    "ground": "#14171a", "ink": "#e6e8ea", "soft": "#a9b1b9", "line": "#444c55", "faint": "#20252a",
    "link": "#7cb8ff", "c0": "#5aa9e6", "c1": "#f0a35e", "c2": "#4cc9a0", "c3": "#e08fc0", "c4": "#ff8a75",
    "c5": "#5fc7d9", "c6": "#b5b5b5",
}  # fmt: skip


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


STYLE = (
    f":root{{color-scheme:light dark;{_variables(LIGHT)}}}"
    f"@media(prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
    """
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,"Noto Sans",sans-serif;color:var(--ink);background:var(--ground);margin:0}
header,main,footer{max-width:66rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2rem}footer{padding:2rem 1.25rem;color:var(--soft)}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .5rem}
h2{font-size:1.25rem;line-height:1.3;margin:2.75rem 0 .4rem}h3{font-size:1rem;margin:1rem 0 .25rem}
h1,h2,h3,p,li,figcaption,caption,summary{overflow-wrap:anywhere}
p{margin:.4rem 0 .8rem;max-width:46rem}.soft,figcaption{color:var(--soft)}a{color:var(--link)}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;padding:.5rem;background:var(--ground)}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1rem;list-style:none;padding:0;margin:.75rem 0}
.scroll{overflow-x:auto;margin:.75rem 0 1rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding:0 0 .4rem;caption-side:top}
td,th{padding:.3rem 1.1rem .3rem 0;text-align:right;white-space:nowrap;vertical-align:top}
thead th{border-bottom:2px solid var(--line);font-weight:600;white-space:normal;vertical-align:bottom;
max-width:13rem;overflow-wrap:anywhere;min-width:6.4rem}tbody>tr>*{border-bottom:1px solid var(--line)}
tr>:first-child{text-align:left}tbody th{font-weight:400;white-space:normal;overflow-wrap:anywhere;
min-width:8rem;max-width:22rem}
.text th,.words thead th:last-child{text-align:left}
.text td{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:8rem}
td.words{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:12rem}
td small{color:var(--soft);font-size:.85em;margin-left:.35em}
img.chart{max-width:100%;height:auto;background:#fff}
.chart{margin:1rem 0 1.25rem}
.dots .row{display:grid;grid-template-columns:minmax(6rem,14rem) 1fr 4.5rem;gap:0 1rem;align-items:center;
min-height:1.9rem}
.dots .name{overflow-wrap:anywhere;line-height:1.25}.dots .num{text-align:right}
.track{position:relative;display:block;height:1.9rem;margin:0 .75rem;border-bottom:1px solid var(--line)}
.track i{position:absolute;top:50%}.track .span{height:4px;margin-top:-2px;border-radius:2px;opacity:.6}
.track .dot{width:12px;height:12px;margin:-6px 0 0 -6px;border-radius:50%}
.track .base{top:0;bottom:0;border-left:2px dotted var(--soft)}
.scale .track{border:0;height:1.4rem}
.track b,.plot b{position:absolute;font-weight:400;font-size:.8rem;color:var(--soft);white-space:nowrap}
.track b{transform:translateX(-50%)}
.plot{position:relative;height:17rem;margin:1rem .5rem 1.7rem 3.4rem;border-left:1px solid var(--line);
border-bottom:1px solid var(--line)}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.plot path{vector-effect:non-scaling-stroke;stroke-width:2}.plot path:not(.fill){fill:none}
.plot .grid{stroke:var(--line);stroke-width:1}.plot .dot{stroke-width:9;stroke-linecap:round}
.plot .fill{fill-opacity:.35;stroke-width:1.5}
.plot .y{right:100%;margin-right:.4rem;transform:translateY(-50%)}
.plot .x{top:100%;margin-top:.2rem;transform:translateX(-50%)}
.axis{font-size:.85rem;color:var(--soft);margin:0}.panels{display:grid;gap:0 2rem;
align-items:end;
grid-template-columns:repeat(auto-fit,minmax(min(100%,18rem),1fr))}.panels .plot{height:11rem}
.panels h3{overflow-wrap:anywhere}.panels>*{min-width:0}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;padding:0;margin:.5rem 0;font-size:.9rem}
.key li{display:flex;gap:.45rem;min-width:0}.key span{overflow-wrap:anywhere;min-width:0}
.key i{flex:none;width:1.1rem;height:.7rem;border-radius:2px;margin-top:.42rem}
.kinds{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr));gap:.9rem 1.25rem;
list-style:none;padding:0}
.kinds li{min-width:0}.kinds img{height:72px;width:auto;margin:0 4px 0 0;border:1px solid var(--line);
background:#fff}
.kinds span{display:block;font-size:.85rem;line-height:1.3}
summary{cursor:pointer;margin:.5rem 0}
.hits{display:flex;flex-wrap:wrap;gap:.8rem}.hits figure{margin:0;width:112px}
.hits img{border:1px solid var(--line);background:#fff;display:block}.hits .q img{outline:3px solid var(--c1)}
.hits figcaption{font-size:.8rem;line-height:1.3;overflow-wrap:anywhere}
@media(max-width:40rem){.dots .row{grid-template-columns:1fr 4rem}.dots .name{grid-column:1/3;
margin-top:.4rem}.dots .scale .name{display:none}
td,th{padding-right:.8rem}tbody th{max-width:40vw}}
@media print{nav,.skip{display:none}.scroll{overflow:visible}}
"""
)
