"""JUnit XML: a suite for each part, a test case for each criterion or test.

The elements and attributes are those that Jenkins' schema of the format has.
"""

from xml.etree import ElementTree as Xml

from leakcheck.reports.rows import Part, Report, Row, Subject


def junit(found: Report) -> str:
    """Return the results as JUnit XML.

    What is inconclusive is an ``error``, what is not applicable is ``skipped``.
    """
    top = Xml.Element("testsuites", name=found.command)
    for subject in found.subjects:
        for part in subject.parts:
            top.append(_suite(subject, part))
    Xml.indent(top)
    return Xml.tostring(top, encoding="unicode", xml_declaration=True) + "\n"


def _suite(subject: Subject, part: Part) -> Xml.Element:
    counts = {status: sum(case.status == status for case in part.rows) for status in ("fail", "inconclusive")}
    suite = Xml.Element(
        "testsuite",
        name=f"{subject.name} {part.name}",
        tests=str(len(part.rows)),
        failures=str(counts["fail"]),
        errors=str(counts["inconclusive"]),
        skipped=str(sum(case.status == "not applicable" for case in part.rows)),
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
    match row.status:
        case "fail":
            Xml.SubElement(case, "failure", message=message, type="leakcheck").text = said or message
        case "inconclusive":
            Xml.SubElement(case, "error", message=message, type="inconclusive").text = row.said or message
        case "not applicable":
            Xml.SubElement(case, "skipped", message=row.measured)
        case "pass":
            pass
    return case
