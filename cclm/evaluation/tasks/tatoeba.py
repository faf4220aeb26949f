"""Tatoeba: 112 languages' sentences and their English translations find each other (LASER's test set, v1).

Read as data/tatoeba of facebookresearch/LASER ships it, as tatoeba/. Languages are named as in the other tasks, by two
letters where there are: zh for LASER's cmn. English differs from language to language, and so do their numbers.
"""

from __future__ import annotations

from cclm.evaluation.protocol import Protocol
from cclm.evaluation.sources import Parallel
from cclm.evaluation.task import SentenceTask

# language, =LASER's name where it is another, :pairs where they are not 1,000
TABLE = """
af=afr am=amh:168 ang:134 ar=ara arq:911 arz:477 ast:127 awa:231 az=aze be=bel bn=ben ber bs=bos:354 br=bre bg=bul
ca=cat cbk ceb:600 cs=ces ch=cha:137 zh=cmn kw=cor csb:253 cy=cym:575 da=dan de=deu dsb:479 dtp el=ell eo=epo et=est
eu=eus fo=fao:262 fi=fin fr=fra fy=fry:173 gd=gla:829 ga=gle gl=glg gsw:117 he=heb hi=hin hr=hrv hsb:483 hu=hun
hy=hye:742 io=ido ie=ile ia=ina id=ind is=isl it=ita jv=jav:205 ja=jpn kab ka=kat:746 kk=kaz:575 km=khm:722 ko=kor
ku=kur:410 kzj la=lat lfn lt=lit lv=lvs ml=mal:687 mr=mar max:284 mhr mk=mkd mn=mon:440 nds nl=nld nn=nno nb=nob
nov:257 oc=oci orv:835 pam fa=pes pms:525 pl=pol pt=por ro=ron ru=rus sk=slk sl=slv:823 es=spa sq=sqi sr=srp sv=swe
swg:112 sw=swh:390 ta=tam:307 tt=tat te=tel:234 tl=tgl th=tha:548 tk=tuk:203 tr=tur tzl:104 ug=uig uk=ukr ur=urd
uz=uzb:428 vi=vie war wuu xh=xho:142 yi=yid:848 yue ms=zsm
"""
ROWS = [entry.partition(":") for entry in TABLE.split()]
PAIRS = {name.partition("=")[0]: int(pairs or 1000) for name, _, pairs in ROWS}
SHIPPED = {name.partition("=")[0]: name.rpartition("=")[2] for name, _, _ in ROWS}


def files(code: str) -> tuple[str, str]:
    return f"tatoeba/v1/tatoeba.{code}-eng.{code}", f"tatoeba/v1/tatoeba.{code}-eng.eng"


TASK = SentenceTask(
    name="tatoeba",
    about="sentences and their English translations, up to 1,000 pairs",
    languages=tuple(PAIRS),
    origin="data/tatoeba of facebookresearch/LASER, as tatoeba/",
    splits={"test": Parallel({language: files(code) for language, code in SHIPPED.items()})},
    protocols=(Protocol(name="official", about="LASER: the nearest sentence, to English and from it"),),
    counts={"official": PAIRS},
)
