"""Flickr30K-200: an English caption of Flickr30K's 1,000 test pictures and its machine translations to 200 languages.

Read as data/flickr30k-200 of visheratin/nllb-clip ships it: filenames.txt, eng_captions.txt and <language>.txt, line by
line. Languages are FLORES-200's, with their script (deu_Latn, zho_Hans), as NLLB wants them; English is en.
"""

from __future__ import annotations

from cclm.evaluation.protocol import RetrievalProtocol
from cclm.evaluation.sources import Lines
from cclm.evaluation.task import RetrievalTask

# FLORES-200's languages by script
LATIN = """
ace afr aka als ast ayr azj bam ban bem bjn bos bug cat ceb ces cjk crh cym dan deu dik dyu epo est eus ewe fao fij fin
fon fra fur fuv gaz gla gle glg grn hat hau hrv hun ibo ilo ind isl ita jav kab kac kam kbp kea kik kin kmb kmr knc kon
lij lim lin lit lmo ltg ltz lua lug luo lus lvs min mlt mos mri nld nno nob nso nus nya oci pag pap plt pol por quy ron
run sag scn slk slv smo sna som sot spa srd ssw sun swe swh szl taq tgl tpi tsn tso tuk tum tur twi umb uzn vec vie war
wol xho yor zsm zul
"""
OTHER = """
ace_Arab acm_Arab acq_Arab aeb_Arab ajp_Arab amh_Ethi apc_Arab arb_Arab ars_Arab ary_Arab arz_Arab asm_Beng awa_Deva
azb_Arab bak_Cyrl bel_Cyrl ben_Beng bho_Deva bjn_Arab bod_Tibt bul_Cyrl ckb_Arab dzo_Tibt ell_Grek guj_Gujr heb_Hebr
hin_Deva hne_Deva hye_Armn jpn_Jpan kan_Knda kas_Arab kas_Deva kat_Geor kaz_Cyrl khk_Cyrl khm_Khmr kir_Cyrl knc_Arab
kor_Hang lao_Laoo mag_Deva mai_Deva mal_Mlym mar_Deva mkd_Cyrl mni_Beng mya_Mymr npi_Deva ory_Orya pan_Guru pbt_Arab
pes_Arab prs_Arab rus_Cyrl san_Deva shn_Mymr sin_Sinh snd_Arab srp_Cyrl tam_Taml taq_Tfng tat_Cyrl tel_Telu tgk_Cyrl
tha_Thai tir_Ethi tzm_Tfng uig_Arab ukr_Cyrl urd_Arab ydd_Hebr yue_Hant zho_Hans zho_Hant
"""
LANGUAGES = tuple(sorted([*(f"{code}_Latn" for code in LATIN.split()), *OTHER.split()]))

TASK = RetrievalTask(
    name="flickr30k_200",
    about="captions of Flickr30K's test pictures, one each, translated by machine",
    languages=("en", *LANGUAGES),
    pictures="Flickr30K",
    origin="data/flickr30k-200 of visheratin/nllb-clip, as flickr30k-200/",
    splits={
        "test": Lines(
            "flickr30k-200/filenames.txt",
            {"en": ("flickr30k-200/eng_captions.txt",)}
            | {language: (f"flickr30k-200/{language}.txt",) for language in LANGUAGES},
        )
    },
    protocols=(RetrievalProtocol(name="official", about="NLLB-CLIP: 1,000 pictures, a caption each"),),
    counts={"official": dict.fromkeys(("en", *LANGUAGES), 1000)},
    images={"official": dict.fromkeys(("en", *LANGUAGES), 1000)},
)
