"""A small page after the manner of each tool that makes manuals: its navigation is gone, and its text is whole."""

# ruff: noqa: E501 - pages are written as the tools write them

from __future__ import annotations

import html
import re

import pytest

from pipeline.extract.html.page import read_page

ONE = "The first sentence of the page says what it is about, and it is long enough to be prose."
TWO = "See the previous chapter, the <a href='next.html'>next</a> one, or the <a href='i.html'>index</a>."
TWO_SAYS = "See the previous chapter, the next one, or the index."
BODY = f"<p>{ONE}</p><p>{TWO}</p>"
SAYS = f"{ONE}\n\n{TWO_SAYS}"

DOCBOOK = f"""<html><head><title>Chapter 2. Locks</title></head><body>
  <div class="navheader"><table width="100%" summary="Navigation header"><tr><th colspan="5" align="center">Chapter 2.
  Locks</th></tr><tr><td width="10%"><a accesskey="p" href="p.html" title="Pages">Prev</a> </td><td><a accesskey="u"
  href="u.html" title="The Book">Up</a></td><th width="60%">The Book</th><td><a accesskey="h" href="index.html">Home</a>
  </td><td> <a accesskey="n" href="n.html" title="Keys">Next</a></td></tr></table><hr></div>
  <div class="chapter"><div class="titlepage"><h2 class="title">Chapter 2. Locks</h2></div>
  <div class="toc"><p><strong>Table of Contents</strong></p><dl class="toc"><dt><a href="l.html#A">2.1. Rows</a></dt>
  </dl></div>{BODY}</div>
  <div class="navfooter"><hr><table summary="Navigation footer"><tr><td><a accesskey="p" href="p.html">Prev</a></td>
  <td><a accesskey="u" href="u.html">Up</a></td><td><a accesskey="n" href="n.html">Next</a></td></tr><tr><td>Pages</td>
  <td><a accesskey="h" href="index.html">Home</a></td><td>Keys</td></tr></table></div></body></html>"""

BOOSTBOOK = f"""<html><head><title>Function f</title></head><body><table cellpadding="2" width="100%"><tr>
  <td valign="top"><img alt="C++ Libraries" width="277" src="logo.png"></td><td align="center"><a href="i.htm">Home</a>
  </td><td align="center"><a href="l.htm">Libraries</a></td><td align="center"><a href="m.htm">More</a></td></tr></table>
  <hr><div class="spirit-nav"><a accesskey="p" href="p.html"><img src="prev.png" alt="Prev"></a><a accesskey="n"
  href="n.html"><img src="next.png" alt="Next"></a></div><div class="refentry"><h2><span>Function f</span></h2>{BODY}
  </div><table width="100%"><tr><td align="left"></td><td align="right"><div class="copyright-footer">Copyright © 2005,
  2006 A. Person<br>Copyright © 2008 B. Person<p>Distributed under the Library License, Version 1.0. (See accompanying
  file LICENSE.txt or copy at <a href="l.txt">l.txt</a>)</p></div></td></tr></table></body></html>"""

SPHINX = f"""<html><head><title>locks — Locking &#8212; The Tool 3.1 documentation</title></head><body>
  <div class="related" role="navigation" aria-label="related navigation"><h3>Navigation</h3><ul><li class="right"><a
  href="genindex.html" accesskey="I">index</a></li><li class="right"><a href="n.html" accesskey="N">next</a> |</li>
  <li class="nav-item nav-item-0"><a href="index.html">The Tool 3.1 documentation</a> &#187;</li></ul></div>
  <div class="document"><div class="documentwrapper"><div class="bodywrapper"><div class="body" role="main">
  <section id="header"><h1>Locking<a class="headerlink" href="#header" title="Permalink">¶</a></h1>{BODY}
  <dl class="py method"><dt class="sig">lock.next()<a class="reference internal" href="_modules/l.html#next"><span
  class="viewcode-link"><span class="pre">[source]</span></span></a><a class="headerlink" href="#n">¶</a></dt>
  <dd><p>Takes the lock.</p></dd></dl><aside class="footnote-list brackets"><aside class="footnote brackets" id="id4"
  role="note"><span class="label">1</span><p>Based on figures at <a href="https://example.org/figures-of-the-year">
  https://example.org/figures-of-the-year</a></p></aside></aside></section></div></div></div>
  <div class="sphinxsidebar" role="navigation"><div class="sphinxsidebarwrapper"><h4>Previous topic</h4><p class="topless">
  <a href="p.html">Pages</a></p><div id="searchbox" style="display: none" role="search"><h3>Quick search</h3></div></div>
  </div></div><div class="footer" role="contentinfo">&copy; Copyright 2024, The Makers. Created using <a
  href="https://example.org">a tool</a> 5.3.0.</div></body></html>"""

READ_THE_DOCS = f"""<html><head><title>Locking — The Tool</title></head><body class="wy-body-for-nav"><nav class="wy-nav-side">
  <a href="index.html">The Tool</a></nav><section data-toggle="wy-nav-shift" class="wy-nav-content-wrap"><div
  role="navigation" aria-label="Page navigation"><ul class="wy-breadcrumbs"><li><a href="index.html">Docs</a></li></ul>
  </div><div role="main"><h1>Locking</h1>{BODY}</div><footer><div class="rst-footer-buttons" role="navigation"><a
  href="n.html" rel="next">Next</a></div><hr/><div role="contentinfo"><p>© Copyright 2024, The Makers.</p></div>
  Built with <a href="s">Sphinx</a> using a <a href="t">theme</a> provided by <a href="r">Read the Docs</a>.
  </footer></section></body></html>"""

SITE_HEADING = f"""<html><head><title>Locking &#8212; The Tool 3.2 documentation</title></head><body><div id="hd">
  <h1><a href="index.html">The Tool 3.2 documentation</a></h1><div id="global-nav"><a href="i.html">Home</a> | <a
  href="g.html">Index</a></div><div class="nav">&laquo; <a href="p" title="P">previous</a> | <a href="n">next</a></div>
  </div><div id="bd"><h1>Locking<a class="headerlink" href="#l">¶</a></h1>{BODY}</div><h3>Last update:</h3>
  <p class="topless">Nov 11, 2024</p></body></html>"""

TEXINFO = f"""<html><head><title>Locks (The Tool)</title></head><body><div class="nav-panel"><p>Next: <a href="K.html"
  accesskey="n" rel="next">Keys</a>, Previous: <a href="P.html" accesskey="p" rel="prev">Pages</a>, Up: <a
  href="T.html" accesskey="u" rel="up">Top</a> &nbsp; [<a href="C.html" rel="contents">Contents</a>][<a href="I.html"
  rel="index">Index</a>]</p></div><h3 class="section" id="Locks-1"><span>2.1 Locks<a class="copiable-link"
  href="#Locks-1"> &para;</a></span></h3>{BODY}<p>See also: <code><a href="#a">lock_a</a></code>, <code><a
  href="#b">lock_b</a></code>, <code><a href="#c">lock_c</a></code>.</p></body></html>"""

TEXI2HTML = f"""<html><head><title>The Tool: 2. Locks</title></head><body><table cellpadding="1" border="0"><tr><td>[<a
  href="t_1.html#SEC1" title="Previous section in reading order"> &lt; </a>]</td><td>[<a href="t_3.html#SEC3"
  title="Next section in reading order"> &gt; </a>]</td><td>[<a href="t.html#SEC0"> Up </a>]</td><td>[<a
  href="t.html#Top">Top</a>]</td><td>[<a href="t_toc.html#C">Contents</a>]</td><td>[<a href="t_9.html#I">Index</a>]
  </td><td>[<a href="t_abt.html" title="About (help)"> ? </a>]</td></tr></table><h1 class="chapter">2. Locks</h1>{BODY}
  <hr><p><font size="-1">This document was generated by <em>A. Person</em> on <em>May 1, 2020</em> using <a
  href="x"><em>texi2html 5.0</em></a>.</font></p></body></html>"""

LATEX2HTML = f"""<html><head><title>Locks</title></head><body><a name="tex2html5" href="n.html"><img alt="next"
  src="next.png"></a> <a name="tex2html3" href="u.html"><img alt="up" src="up.png"></a> <a name="tex2html1"
  href="p.html"><img alt="previous" src="prev.png"></a><br><b> Next:</b> <a href="n.html">Keys</a> <b> Up:</b> <a
  href="u.html">The Tool</a> <b> Previous:</b> <a href="p.html">Pages</a><br><br><h1><a name="S1">Locks</a></h1>{BODY}
  <p>See also help for <b>set palette (p.&nbsp;<a href="node371.html#p"><img alt="[*]" src="crossref.png"></a>)</b>,
  <b>set range (p.&nbsp;<a href="node506.html#r"><img alt="[*]" src="crossref.png"></a>)</b>.</p></body></html>"""

DOXYGEN = f"""<html><head><title>Tool: Lock Class Reference</title></head><body><div style="padding:5px">Please answer our
  short survey: <a href="https://example.org/s">https://example.org/s</a></div><div id="top"><div id="titlearea"><table>
  <tr><td id="projectalign"><div id="projectname">Tool &#160;<span id="projectnumber">3.4.0</span></div></td></tr></table>
  </div></div><div id="side-nav" class="ui-resizable"><div id="nav-tree"><a href="a.html">A</a></div></div>
  <div id="doc-content"><div class="header"><div class="summary"><a href="l-members.html">List of all members</a> &#124;
  <a href="#pub">Public Member Functions</a></div><div class="headertitle"><div class="title">Lock Class Reference<div
  class="ingroups"><a class="el" href="g.html">Groups</a> &raquo; <a href="h.html">Locks</a></div></div></div></div>
  <div class="contents"><div class="textblock">{BODY}</div><div class="fragment"><div class="line"><a name="l1"></a><span
  class="lineno">    1</span>&#160;#include &lt;lock.h&gt;</div><div class="line"><span class="lineno">    2</span>&#160;
  int x;</div></div></div></div><hr class="footer"/><address class="footer"><small>Generated by&#160;<a href="d"><img
  alt="doxygen"></a> 1.9.4</small></address></body></html>"""

JAVADOC = f"""<html><head><title>Lock (Tool API)</title></head><body><header role="banner"><nav role="navigation"><div
  class="topNav"><a name="navbar.top"></a><div class="skipNav"><a href="#skip.navbar.top">Skip navigation links</a></div>
  <ul class="navList"><li><a href="o.html">Overview</a></li><li class="navBarCell1Rev">Class</li></ul></div></nav></header>
  <main role="main"><div class="header"><div class="subTitle"><span>Package</span> <a href="p.html">org.tool</a></div>
  <h2 title="Class Lock" class="title">Class Lock</h2></div><div class="contentContainer"><div class="description">
  <div class="block">{BODY}</div></div><div class="summary"><h3>Methods</h3><table class="memberSummary"><caption><span
  id="t0" class="activeTableTab"><span>All Methods</span></span><span id="t2" class="tableTab"><span><a href="x">Instance
  Methods</a></span></span></caption><tr><th>Method</th><th>Description</th></tr><tr><td><a href="L.html#next--">next</a>
  </td><td><a href="L.html#previous--">previous</a> is its twin</td></tr></table></div></div></main>
  <footer role="contentinfo"><p class="legalCopy"><small>Copyright © 2024 The Makers.</small></p></footer></body></html>"""

GTK_DOC = f"""<html><head><title>Lock: Tool Reference Manual</title></head><body><table class="navigation" id="top"><tr
  valign="middle"><td width="100%" align="left" class="shortcuts"><a href="#" class="shortcut">Top</a><span
  id="nav_description">  <span class="dim">|</span> <a href="#d" class="shortcut">Description</a></span></td><td><a
  accesskey="h" href="index.html"><img src="home.png" alt="Home"></a></td><td><a accesskey="u" href="u.html"><img
  alt="Up"></a></td></tr></table><div class="refentry"><h2><span class="refentrytitle">Lock</span></h2>{BODY}
  <table class="informaltable"><tr><td class="function_type"><span class="returnvalue">void</span></td><td><a
  href="Lock.html#n">lock_next</a> ()</td></tr></table></div><div class="footer"><hr>Generated by GTK-Doc V1.33</div>
  </body></html>"""

MDBOOK = f"""<html><head><title>Locks - The Book</title></head><body><div id="body-container"><nav id="sidebar"><ol
  class="chapter"><li><a href="a.html">A</a></li></ol></nav><div id="page-wrapper" class="page-wrapper"><div class="page">
  <div id="menu-bar" class="menu-bar sticky"><h1 class="menu-title">The Book</h1><a href="print.html">P</a></div>
  <div id="content" class="content"><main><h1 id="locks"><a class="header" href="#locks">Locks</a></h1>{BODY}</main><nav
  class="nav-wrapper"><a rel="prev" href="p.html">&lt;</a><a rel="next" href="n.html">&gt;</a></nav></div></div></div>
  </div></body></html>"""

RUSTDOC = f"""<html><head><title>Lock in tool - Rust</title></head><body class="rustdoc struct"><nav class="mobile-topbar">
  <a href="i.html">Lock</a></nav><nav class="sidebar"><h2><a href="#">Lock</a></h2></nav><main><div class="width-limiter">
  <nav class="sub"><form></form></nav><section id="main-content" class="content"><div class="main-heading"><h1>Struct
  <a href="i.html">tool</a>::<a class="struct" href="#">Lock</a></h1><span class="out-of-band"><a class="src"
  href="s.html#1">source</a> · <a id="toggle-all-docs">[−]</a></span></div><div class="docblock">{BODY}</div></section>
  </div></main></body></html>"""

SCRIBBLE = f"""<html><head><title>2 Locks</title></head><body id="scribble-racket-lang-org"><div class="tocset"><div
  class="tocview"><table><tr><td><a href="i.html" class="tocviewtitle">The Guide</a></td></tr></table></div><div
  class="tocsub"><div class="tocsubtitle">On this page:</div><a href="#x" class="tocsubseclink">Locks</a></div></div><div
  class="maincolumn"><div class="main"><div class="navsettop"><span class="navleft"><a href="t.html">top</a></span><span
  class="navright"><a href="p.html">← prev</a> <a href="u.html">up</a> <a href="n.html">next →</a></span></div><h3>2
  Locks</h3>{BODY}<table class="RktBlk"><tr><td>(<a href="r.html?q=1">-&gt;</a> <a href="r.html?q=2">any/c</a></td></tr>
  <tr><td><a href="r.html?q=1">-&gt;</a> <a href="r.html?q=3">path?</a>)</td></tr></table></div></div></body></html>"""

HADDOCK = f"""<html><head><title>Data.Lock</title></head><body><div id="package-header"><ul class="links" id="page-menu"><li>
  <a href="i.html">Contents</a></li><li><a href="x.html">Index</a></li></ul><span class="caption">tool-3.4: locks</span>
  </div><div id="content"><div id="module-header"><table class="info"><tr><th>Copyright</th><td>(c) 2010 A. Person</td>
  </tr><tr><th>License</th><td>BSD</td></tr></table><p class="caption">Data.Lock</p></div><div id="description"><h1>
  Description</h1><div class="doc">{BODY}</div></div><p class="src">(==) :: <a href="L.html#t:L">Lock</a> <a
  href="#v:1" class="selflink">#</a></p><p class="src"><a href="#v:2">(&lt;&gt;)</a> | <a href="#v:3">(+)</a> | <a
  href="#v:4">next</a></p></div><div id="footer"><p>Produced by <a href="h">Haddock</a> version 2.25.1</p></div></body>
  </html>"""

ASCIIDOCTOR = f"""<html><head><title>tool-lock(1)</title></head><body class="manpage"><div id="header"><h1>tool-lock(1)
  Manual Page</h1><h2>NAME</h2><div class="sectionbody"><p>tool-lock - Take and give back locks</p></div></div><div
  id="content"><div class="sect1"><h2 id="_d">DESCRIPTION</h2><div class="sectionbody">{BODY}</div></div><div
  class="sect1"><h2>COPYRIGHT</h2><p>Copyright © 2024 The Makers.</p></div></div><div id="footer"><div id="footer-text">
  Last updated 2024-05-31 00:35:55 UTC</div></div></body></html>"""

QDOC = f"""<html><head><title>Lock Class | Tool Core 5.15.8</title></head><body><div class="header" id="qtdocheader"><div
  class="main"><div class="main-rounded"><div class="navigationbar"><table><tr><td>Tool 5.15</td><td><a
  href="i.html">Tool Core</a></td><td><a href="c.html">C++ Classes</a></td><td>Lock</td></tr></table><table><tr
  class="buildversion"><td id="buildversion">Tool 5.15.8 Reference Documentation</td></tr></table></div></div><div
  class="content"><div class="line"><div class="content mainContent"><div class="sidebar"><div class="toc"><h3>Contents</h3>
  <ul><li class="level1"><a href="#d">Details</a></li></ul></div></div><h1 class="title">Lock Class</h1>{BODY}<ul><li><a
  href="l-members.html">List of all members, including inherited members</a></li></ul></div></div></div></div></div><div
  class="footer"><p><acronym title="Copyright">&copy;</acronym> 2020 The Makers. Contributions included herein are the
  copyrights of their respective owners.</p></div></body></html>"""

MENU_COLUMN = f"""<html><head><title>Locks | Tool v18 Documentation</title></head><body><div id="content"><div id="column2"
  class="interior"><div id="intro"><a href="index.html">Tool</a></div><ul>{
    "".join(f'<li><a href="{n}.html" class="nav-{n}">Module {n}</a></li>' for n in range(40))
}</ul></div><div id="column1" class="interior"><header><h1>Tool v18 documentation</h1><div id="gtoc"><ul><li><a
  href="i.html">Index</a></li></ul></div></header><div id="apicontent"><h2>Locks<span><a class="mark" href="#l">#</a></span>
  </h2>{BODY * 4}</div></div></div></body></html>"""

BESIDE = f"""<html><head><title>std/locks</title></head><body><div class="document" id="documentId"><div class="container">
  <h1 class="title">std/locks</h1><div class="row"><div class="three columns"><div class="theme-switch-wrapper"><em>Dark
  Mode</em></div><div id="global-links"><ul><li><a href="m.html">Manual</a></li><li><a href="l.html">Standard
  library</a></li><li><a href="d">devel</a>, <a href="s">stable</a></li></ul></div><div id="searchInputDiv">Search:</div>
  </div>&nbsp;<a href="g" class="link-seesrc">Source</a>&nbsp;<a href="e" class="link-seesrc">Edit</a><div
  class="nine columns" id="content">{BODY * 4}</div></div><footer>Made with Tool. Generated: 2024-01-01</footer></div>
  </div></body></html>"""

TAGLINE = f"""<html><head><title>Locks In The Tool</title></head><body><div class="nosearch"><a href="index.html"><img
  class="logo" src="l.gif" alt="Tool"></a><div><!-- IE hack --></div><div class="tagline desktoponly">Small. Fast.
  Reliable.<br>Choose any three.</div><div class="menu mainmenu"><ul><li><a href="index.html">Home</a></li><li><a
  href="a.html">About</a></li><li><a href="d.html">Download</a></li></ul></div></div><h1>Locks In The Tool</h1>{BODY}
  </body></html>"""

LANGUAGES = f"""<html><head><title>mod_lock - The Server Version 2.4</title></head><body><div id="page-header"><p class="menu">
  <a href="m.html">Modules</a> | <a href="f">FAQ</a></p><p class="server">The Server Version 2.4</p></div><div
  class="up"><a href="./"><img alt="&lt;-" src="left.gif"></a></div><div id="path"><a href="a">Maker</a> &gt; <a
  href="s">Server</a> &gt; <a href="d">Documentation</a></div><div id="page-content"><div id="preamble"><h1>Module
  mod_lock</h1><div class="toplang"><p><span>Available Languages: </span><a href="en.html" title="English">en</a> | <a
  href="fr.html" hreflang="fr" rel="alternate">fr</a></p></div><table class="module"><tr><th><a
  href="dict.html#Status">Status:</a></th><td>Extension</td></tr></table>{BODY}</div><div id="quickview"><h3>Directives</h3>
  <ul id="toc"><li><a href="#l">LockFile</a></li><li><a href="#m">MutexName</a></li></ul><h3>Checklist</h3><ul class="seealso"><li><a href="b">Known issues</a>
  </li></ul></div></div><div class="bottomlang"><p><span>Langues disponibles: </span><a href="en.html">en</a></p></div>
  <div id="footer"><p>Copyright 2024 The Makers.<br>Licensed under the <a href="l">License</a>.</p></div></body></html>"""

LOOSE_LINKS = f"""<html><head><title>2. Locks</title></head><body><h1>The Mailer</h1><div id="inner"><div id="content"><a
  class="previous_page" href="p.html">&lt;-previous</a><a href="i.html">Table of Contents</a><a class="next_page"
  href="n.html">next-&gt;</a><div class="chapter"><h2>2. Locks</h2>{BODY}</div><a href="p.html">&lt;-previous</a><a
  href="n.html">next-&gt;</a></div></div></body></html>"""

MEDIAWIKI = f"""<html><head><title>lock - reference.example</title></head><body><div id="content"><h1 id="firstHeading">lock</h1>
  <div id="bodyContent"><div id="siteSub">From reference.example</div><div id="contentSub"><span class="subpages">&lt; <a
  href="c.html">cpp</a></span></div><div class="t-navbar"><div class="t-navbar-sep">&#160;</div><div class="t-navbar-head">
  <a href="c.html">C++</a><div class="t-navbar-menu"><table><tr class="t-nv"><td colspan="5"><a href="l.html">Language</a>
  </td></tr><tr class="t-nv"><td><a href="f.html">Filesystem library</a> <span>(C++17)</span></td></tr></table></div></div>
  </div>{BODY}<h3><span class="mw-editsection">[<a href="e">edit</a>]</span>Notes</h3><p>A note.</p></div></div></body></html>"""

DOCUSAURUS = f"""<html lang="en"><head><title>Locks | The Tool</title></head><body><a href="#main">Skip to main content</a><nav
  class="navbar"><a href="/">The Tool</a></nav><div id="__docusaurus"><aside class="theme-doc-sidebar-container"><ul><li>
  <a href="/a">A</a></li></ul></aside><main><article><nav class="theme-doc-breadcrumbs"><ul class="breadcrumbs"><li><a
  href="/">Home</a></li><li>Locks</li></ul></nav><header><h1>Locks</h1></header>{BODY}<footer class="theme-doc-footer"><a
  href="https://example.org/e">Edit this page</a><div>Last updated on <b>Jan 2, 2024</b></div></footer></article><nav
  class="pagination-nav"><a href="/n">Next: Keys</a></nav></main></div><footer class="footer">Copyright © 2024</footer>
  </body></html>"""

MAN2HTML = f"""<html><head><title>Man page of LOCK</title></head><body><h1>LOCK</h1>Section: User Commands (1)<br>Updated:
  2020-01-01<br><a href="#index">Index</a> <a href="../index.html">Return to Main Contents</a><hr><h2>DESCRIPTION</h2>
  {BODY}<hr><a name="index">&nbsp;</a><h2>Index</h2><dl><dt><a href="#lbAB">NAME</a><dd><dt><a href="#lbAC">SYNOPSIS</a><dd>
  <dt><a href="#lbAD">DESCRIPTION</a><dd></dl><hr>This document was created by <a href="/m">man2html</a>, using the manual
  pages.<br>Time: 00:00:00 GMT, May 01, 2020</body></html>"""

LINUXDOC = f"""<html><head><title>A HOWTO: Locks</title></head><body><a href="n.html"><img src="next.png" alt="Next"></a>
  Previous <a href="i.html#toc2"><img src="toc.png" alt="Contents"></a><hr><h2><a name="s2">2.</a> <a href="i.html#toc2">
  Locks</a></h2>{BODY}<pre>make</pre>The updated files can be read by everybody.</p><hr>Next <a href="p.html">Previous</a>
  <a href="i.html#toc2">Contents</a></body></html>"""

PUBLICAN = f"""<html><head><title>3.5. Locks</title></head><body><p id="title"><a class="left" href="h"><img alt="Site"></a><a
  class="right" href="d"><img alt="Documentation"></a></p><ul class="docnav top"><li class="previous"><a accesskey="p"
  href="p.html"><strong>前へ</strong></a></li><li class="home">セキュリティマニュアル</li><li class="next"><a accesskey="n"
  href="n.html"><strong>次へ</strong></a></li></ul><div class="section"><div class="titlepage"><h2 class="title">3.5.
  Locks</h2></div>{BODY}</div><ul class="docnav"><li class="next"><a accesskey="n" href="n.html"><strong>次へ</strong>
  3.6. ...</a></li></ul></body></html>"""

PEP = f"""<html><head><title>PEP 1 – Locks</title></head><body><div class="header"><strong>Proposals</strong> | <a
  href="p">Python</a> &raquo; <a href="i">PEP Index</a> &raquo; PEP 1</div><div class="document"><table class="rfc2822"><tr>
  <th class="field-name">Author:</th><td class="field-body">A. Person</td></tr></table><div class="contents topic"
  id="contents"><p class="topic-title">Contents</p><ul><li><a href="#a">One</a></li><li><a href="#b">Two</a></li><li><a
  href="#c">Three</a></li></ul></div><div class="section" id="a"><h1><a class="toc-backref" href="#id1">One</a></h1>
  {BODY}</div></div></body></html>"""

NUMBERED = f"""<html><head><title>Project: Notes (old).</title></head><body><div class="headertitle"><div class="title">Notes
  (old). </div></div><div class="contents"><h1>Locks</h1><p><label class="ocn"><a href="#282" class="lnkocn">282</a></label>
  {ONE}</p><p>{TWO}</p></div><p class="foot">[ <a href="a.html">Main index</a> | <a href="b.html">Topics index</a> ]</p>
  <p>© 2003-2023 The Team, Reference Manual</p></body></html>"""

PAGES = {
    "linuxdoc": (LINUXDOC, f"## 2. Locks\n\n{SAYS}\n\n```\nmake\n```\n\nThe updated files can be read by everybody."),
    "publican": (PUBLICAN, f"## 3.5. Locks\n\n{SAYS}"),
    "pep": (PEP, f"| Author: | A. Person |\n| --- | --- |\n\n# One\n\n{SAYS}"),
    "numbered paragraphs": (NUMBERED, f"# Notes (old).\n\n# Locks\n\n{SAYS}"),
    "docbook": (DOCBOOK, f"## Chapter 2. Locks\n\n2.1. Rows\n\n{SAYS}"),
    "boostbook": (BOOSTBOOK, f"## Function f\n\n{SAYS}"),
    "sphinx": (
        SPHINX,
        f"# Locking\n\n{SAYS}\n\nlock.next()\n\nTakes the lock.\n\n1\n\nBased on figures at "
        "https://example.org/figures-of-the-year",
    ),
    "read the docs": (READ_THE_DOCS, f"# Locking\n\n{SAYS}"),
    "a heading of the site": (SITE_HEADING, f"# Locking\n\n{SAYS}"),
    "texinfo": (TEXINFO, f"### 2.1 Locks\n\n{SAYS}\n\nSee also: lock_a, lock_b, lock_c."),
    "texi2html": (TEXI2HTML, f"# 2. Locks\n\n{SAYS}"),
    "latex2html": (LATEX2HTML, f"# Locks\n\n{SAYS}\n\nSee also help for set palette (p. ), set range (p. )."),
    "doxygen": (DOXYGEN, f"# Lock Class Reference\n\n{SAYS}\n\n```\n #include <lock.h>\n \n  int x;\n```"),
    "javadoc": (
        JAVADOC,
        f"Package org.tool\n\n## Class Lock\n\n{SAYS}\n\n### Methods\n\n"
        "| Method | Description |\n| --- | --- |\n| next | previous is its twin |",
    ),
    "gtk-doc": (GTK_DOC, f"## Lock\n\n{SAYS}\n\n| void | lock_next () |\n| --- | --- |"),
    "mdbook": (MDBOOK, f"# Locks\n\n{SAYS}"),
    "rustdoc": (RUSTDOC, f"# Struct tool::Lock\n\n{SAYS}"),
    "scribble": (SCRIBBLE, f"### 2 Locks\n\n{SAYS}\n\n(-> any/c\n\n-> path?)"),
    "haddock": (
        HADDOCK,
        "| Copyright | (c) 2010 A. Person |\n| --- | --- |\n| License | BSD |\n\nData.Lock\n\n# Description\n\n"
        f"{SAYS}\n\n(==) :: Lock\n\n(<>) | (+) | next",
    ),
    "asciidoctor": (
        ASCIIDOCTOR,
        "# tool-lock(1) Manual Page\n\n## NAME\n\ntool-lock - Take and give back locks\n\n## DESCRIPTION\n\n"
        f"{SAYS}\n\n## COPYRIGHT\n\nCopyright © 2024 The Makers.",
    ),
    "qdoc": (QDOC, f"# Lock Class\n\n{SAYS}"),
    "a column of links": (MENU_COLUMN, "## Locks\n\n" + "\n\n".join([SAYS] * 4)),
    "a menu beside the text": (BESIDE, "# std/locks\n\n" + "\n\n".join([SAYS] * 4)),
    "a tagline": (TAGLINE, f"# Locks In The Tool\n\n{SAYS}"),
    "languages": (LANGUAGES, f"# Module mod_lock\n\n| Status: | Extension |\n| --- | --- |\n\n{SAYS}"),
    "loose links": (LOOSE_LINKS, f"# The Mailer\n\n## 2. Locks\n\n{SAYS}"),
    "mediawiki": (MEDIAWIKI, f"# lock\n\n{SAYS}\n\n### Notes\n\nA note."),
    "man2html": (
        MAN2HTML,
        f"# LOCK\n\nSection: User Commands (1)\nUpdated: 2020-01-01\n\n## DESCRIPTION\n\n{SAYS}",
    ),
    "docusaurus": (DOCUSAURUS, f"# Locks\n\n{SAYS}"),
}


ENDS = {
    "a sentence about copyright": "<p>Copyright law knows the term of a work that was made for hire.</p>",
    "a sentence about a file": "<p>The file is generated by the build, and it is read by the tool.</p>",
    "a section about rights": "<h2>License</h2><p>Copyright © 2024 A. Person.</p><p>Licensed under the License.</p>",
    "a section of links": '<h2>See also</h2><p><a href="n.html">Next Steps</a></p>',
    "an index": '<h2>Index</h2><ul><li><a href="a.html#x">next</a></li><li><a href="b.html#y">prev</a></li></ul>',
    "a table of operators": '<table><tr><td><a href="r.html#lt">&lt;</a></td><td><a href="r.html#gt">&gt;</a></td></tr></table>',
    "short functions": "".join(
        f'<p><a href="{name}.html">{name}</a></p>'
        for name in ("abs", "cos", "exp", "log", "max", "min", "pow", "sin", "sum", "tan")
    ),
    "a term": "<dl><dt>Contents</dt><dd>What is in the box.</dd></dl>",
    "titles of examples": '<h2>Use</h2><div class="exampleblock"><div class="title">Example one</div><p>An example.</p></div>',
    "a folded row": '<table><tr><td>one</td><td>two</td></tr><tr style="display:none"><td>three</td><td>four</td></tr></table>',
    "questions": '<ul><li><a href="#a">Why is the <b>--x</b> option so slow on my machine?</a></li><li><a href="#b">b</a></li><li><a href="#c">c</a></li></ul>',
    "slides": '<div class="fragment">A step of the talk.</div><div class="fragment">Another step.</div>',
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_what_a_page_ends_with_stays_where_it_is_text(end: str) -> None:
    said = re.findall(r"[\w']+", html.unescape(re.sub(r"<[^>]*>", " ", end)))

    found = read_page(f"<title>T</title><h1>Head</h1>{BODY}{end}").text

    assert [word for word in said if word not in found] == []
    assert "# Example" not in found


@pytest.mark.parametrize(("page", "expected"), PAGES.values(), ids=PAGES.keys())
def test_a_page_of_a_manual_gives_its_text_and_nothing_else(page: str, expected: str) -> None:
    assert read_page(page).text == expected
