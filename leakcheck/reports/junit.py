"""JUnit XML: a suite for each part, a test case for each criterion or test.

The elements and attributes are those that Jenkins' schema of the format has.
"""

from collections import Counter
from typing import Literal
from xml.etree import ElementTree as Xml

from leakcheck.reports.rows import Part, Report, Row, Subject


def junit(found: Report) -> str:
    """Return the results as JUnit XML.

    What is inconclusive is an ``error``, what is not applicable is ``skipped``, and so is what is not decided without
    making the whole unknown.
    """
    top = Xml.Element("testsuites", name=found.command)
    for subject in found.subjects:
        for part in subject.parts:
            top.append(_suite(subject, part))
    Xml.indent(top)
    return Xml.tostring(top, encoding="unicode", xml_declaration=True) + "\n"


def _suite(subject: Subject, part: Part) -> Xml.Element:
    counts = Counter(map(_element, part.rows))
    suite = Xml.Element(
        "testsuite",
        name=f"{subject.name} {part.name}",
        tests=str(len(part.rows)),
        failures=str(counts["failure"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"]),
        time=f"{part.seconds:.3f}",
    )
    said = "\n\n".join(one.text for one in part.failures)
    for case in part.rows:
        suite.append(_case(case, f"{subject.name}.{part.name.replace(' ', '.')}", case.said or said))
    return suite


def _case(row: Row, classname: str, said: str) -> Xml.Element:
    case = Xml.Element("testcase", name=row.name, classname=classname)
    limit = f", limit {row.limit}" if row.limit else ""
    message = f"{row.name}: {row.measured}{limit}"
    match element := _element(row):
        case "failure":
            Xml.SubElement(case, element, message=message, type="leakcheck").text = said or message
        case "error":
            Xml.SubElement(case, element, message=message, type="inconclusive").text = row.said or message
        case "skipped":
            Xml.SubElement(case, element, message=message if row.status == "inconclusive" else row.measured)
        case "":
            pass
    return case


def _element(row: Row) -> Literal["", "failure", "error", "skipped"]:
    """Return the name of the element that says what came of a row; empty if it passes."""
    match row.status:
        case "fail":
            return "failure"
        case "inconclusive":
            return "skipped" if row.minor else "error"
        case "not applicable":
            return "skipped"
        case "pass":
            return ""
