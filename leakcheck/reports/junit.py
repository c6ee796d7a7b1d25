"""JUnit XML: a suite for each campaign of a requirement, a test case for each criterion.

The elements and attributes are those that Jenkins' schema of the format has.
"""

from xml.etree import ElementTree as Xml

from leakcheck.reports.rows import Row, failures, rows, text_of
from leakcheck.verify.result import PartResult, RequirementResult, Verification, Verifications


def junit(found: Verifications) -> str:
    """Return the results as JUnit XML.

    What is inconclusive is an ``error``, what is not applicable is ``skipped``.
    """
    top = Xml.Element("testsuites", name="leakcheck verify")
    for target in found.targets:
        for requirement in target.requirements:
            for part in requirement.parts:
                top.append(_suite(target, requirement, part))
    Xml.indent(top)
    return Xml.tostring(top, encoding="unicode", xml_declaration=True) + "\n"


def _suite(target: Verification, requirement: RequirementResult, part: PartResult) -> Xml.Element:
    name, cases = part.name_in(requirement.id), [*rows(part)]
    counts = {status: sum(case.status == status for case in cases) for status in ("fail", "inconclusive")}
    suite = Xml.Element(
        "testsuite",
        name=f"{target.target} {name}",
        tests=str(len(cases)),
        failures=str(counts["fail"]),
        errors=str(counts["inconclusive"]),
        skipped=str(sum(case.status == "not applicable" for case in cases)),
        time=f"{part.seconds:.3f}",
    )
    said = "\n\n".join(text_of(one) for _, of, one in failures(target) if of is part)
    for case in cases:
        suite.append(_case(case, f"{target.target}.{name.replace(' ', '.')}", said))
    return suite


def _case(row: Row, classname: str, said: str) -> Xml.Element:
    case = Xml.Element("testcase", name=row.name, classname=classname)
    limit = f", limit {row.limit}" if row.limit else ""
    message = f"{row.name}: {row.measured}{limit}"
    match row.status:
        case "fail":
            Xml.SubElement(case, "failure", message=message, type="leakcheck").text = said or message
        case "inconclusive":
            Xml.SubElement(case, "error", message=message, type="inconclusive").text = message
        case "not applicable":
            Xml.SubElement(case, "skipped", message=row.measured)
        case "pass":
            pass
    return case
