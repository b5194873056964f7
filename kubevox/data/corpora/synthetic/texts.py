"""What the synthetic speakers say: twelve everyday sentences, in every language the same twelve.

The English ones have one structure (*The people are doing at the place*), ten syllables and no word that tells an
emotion, as the sentences of RAVDESS and EMO-DB have none; since a speaker says the same sentences in every emotion,
the words cannot give a label away. The other languages' are their translations, so that what is talked about cannot
give a language away.
"""

from __future__ import annotations

__all__ = ["LANGUAGES", "SENTENCES", "SENTENCES_PER_LANGUAGE"]

SENTENCES: dict[str, tuple[str, ...]] = {
    "da": (
        "Børnene går hen til stationen.",
        "Naboerne står ved vinduet.",
        "De studerende læser i kælderen.",
        "Chaufførerne venter på hjørnet.",
        "Lærerne snakker ude på gangen.",
        "Søstrene sidder ved bordet.",
        "Landmændene arbejder i haven.",
        "Malerne hviler sig på trappen.",
        "Brødrene spiser nede ved floden.",
        "Turisterne kigger på bygningen.",
        "Lægerne skriver på kontoret.",
        "Forældrene laver mad i køkkenet.",
    ),
    "de": (
        "Die Kinder gehen zum Bahnhof.",
        "Die Nachbarn stehen am Fenster.",
        "Die Studenten lesen im Keller.",
        "Die Fahrer warten an der Ecke.",
        "Die Lehrer reden auf dem Flur.",
        "Die Schwestern sitzen am Tisch.",
        "Die Bauern arbeiten im Garten.",
        "Die Maler ruhen sich auf der Treppe aus.",
        "Die Brüder essen unten am Fluss.",
        "Die Touristen betrachten das Gebäude.",
        "Die Ärzte schreiben im Büro.",
        "Die Eltern kochen in der Küche.",
    ),
    "en": (
        "The children are walking to the station.",
        "The neighbours are standing by the window.",
        "The students are reading in the basement.",
        "The drivers are waiting at the corner.",
        "The teachers are talking in the hallway.",
        "The sisters are sitting at the table.",
        "The farmers are working in the garden.",
        "The painters are resting on the staircase.",
        "The brothers are eating by the river.",
        "The tourists are looking at the building.",
        "The doctors are writing in the office.",
        "The parents are cooking in the kitchen.",
    ),
    "fi": (
        "Lapset kävelevät asemalle.",
        "Naapurit seisovat ikkunan luona.",
        "Opiskelijat lukevat kellarissa.",
        "Kuljettajat odottavat kadunkulmassa.",
        "Opettajat puhuvat käytävällä.",
        "Sisaret istuvat pöydän ääressä.",
        "Maanviljelijät työskentelevät puutarhassa.",
        "Maalarit lepäävät portaikossa.",
        "Veljekset syövät joen rannalla.",
        "Turistit katselevat rakennusta.",
        "Lääkärit kirjoittavat toimistossa.",
        "Vanhemmat laittavat ruokaa keittiössä.",
    ),
    "is": (
        "Börnin ganga að stöðinni.",
        "Nágrannarnir standa við gluggann.",
        "Nemendurnir lesa í kjallaranum.",
        "Bílstjórarnir bíða á horninu.",
        "Kennararnir tala saman á ganginum.",
        "Systurnar sitja við borðið.",
        "Bændurnir vinna í garðinum.",
        "Málararnir hvíla sig í stiganum.",
        "Bræðurnir borða niðri við ána.",
        "Ferðamennirnir horfa á bygginguna.",
        "Læknarnir skrifa á skrifstofunni.",
        "Foreldrarnir elda í eldhúsinu.",
    ),
    "nb": (
        "Barna går bort til stasjonen.",
        "Naboene står ved vinduet.",
        "Studentene leser i kjelleren.",
        "Sjåførene venter på hjørnet.",
        "Lærerne snakker ute i gangen.",
        "Søstrene sitter ved bordet.",
        "Bøndene arbeider i hagen.",
        "Malerne hviler seg på trappen.",
        "Brødrene spiser nede ved elven.",
        "Turistene ser på bygningen.",
        "Legene skriver på kontoret.",
        "Foreldrene lager mat på kjøkkenet.",
    ),
    "sv": (
        "Barnen går bort till stationen.",
        "Grannarna står vid fönstret.",
        "Studenterna läser i källaren.",
        "Chaufförerna väntar vid hörnet.",
        "Lärarna pratar ute i korridoren.",
        "Systrarna sitter vid bordet.",
        "Bönderna arbetar i trädgården.",
        "Målarna vilar sig i trappan.",
        "Bröderna äter nere vid floden.",
        "Turisterna tittar på byggnaden.",
        "Läkarna skriver på kontoret.",
        "Föräldrarna lagar mat i köket.",
    ),
}
"""The sentences by ISO 639-1 code; the n-th of one language is the translation of the n-th of another."""

LANGUAGES = tuple(sorted(SENTENCES))
SENTENCES_PER_LANGUAGE = 12
