"""junit.xml as Jenkins, GitLab and GitHub read it: a suite per run, a test case per gate.

    PASS           a case without children
    FAIL           <failure type="FAIL">
    INCONCLUSIVE   <failure type="INCONCLUSIVE">: what is not proven must not look green
    INVALID        <error type="INVALID">: the measurement failed, not the model

Structure and attributes are those of Jenkins' junit-10.xsd, which Surefire's and GitLab's readers accept too.
"""

from xml.etree import ElementTree

from evaluation.escaping import visible
from evaluation.gate import GateResult, describe_limit
from evaluation.measurement import is_metric, metric_of
from evaluation.report import Report, headline
from evaluation.table import describe_gate

CHILD: dict[str, str] = {"FAIL": "failure", "INCONCLUSIVE": "failure", "INVALID": "error"}


def junit(report: Report) -> str:
    """The gates as test cases."""
    verdicts = [CHILD.get(result.verdict, "") for result in report.gates]
    seconds = f"{sum(row.seconds or 0.0 for row in report.rows):.3f}"
    counts = {
        "tests": str(len(verdicts)),
        "failures": str(verdicts.count("failure")),
        "errors": str(verdicts.count("error")),
    }
    suites = ElementTree.Element("testsuites", {"name": "demitasse", "time": seconds, **counts})
    suite = ElementTree.SubElement(
        suites,
        "testsuite",
        {
            "name": report.name,
            "time": seconds,
            "timestamp": report.created.strftime("%Y-%m-%dT%H:%M:%S"),
            "skipped": "0",
            **counts,
        },
    )
    properties = ElementTree.SubElement(suite, "properties")
    metadata = {"recipe": report.recipe, "verdict": report.verdict or "NOT GATED", "artifact": report.final.key}
    for name, value in {**metadata, **report.environment}.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": value})
    for result in report.gates:
        _case(suite, report, result)
    said = ElementTree.SubElement(suite, "system-out")
    said.text = headline(report.verdict, len(report.sanity_warnings))
    ElementTree.indent(suites)
    return visible(ElementTree.tostring(suites, encoding="unicode", xml_declaration=True)) + "\n"


def _case(suite: ElementTree.Element, report: Report, result: GateResult) -> None:
    name = f"{result.metric} {describe_limit(result.metric, result.limit)}"
    case = ElementTree.SubElement(suite, "testcase", {"classname": f"{report.name}.gate", "name": name, "time": "0"})
    if result.verdict in CHILD:
        child = ElementTree.SubElement(
            case, CHILD[result.verdict], {"type": result.verdict, "message": f"{result.verdict}: {result.detail}"}
        )
        child.text = result.detail
    said = ElementTree.SubElement(case, "system-out")
    cell = describe_gate(result)
    between = f" (95 % interval {cell.interval})" if cell.interval else ""
    found = metric_of(result.metric).name if is_metric(result.metric) else result.metric
    too_good = f"\nToo good: {result.sanity_warning}" if result.sanity_warning else ""
    said.text = f"{found}: {cell.value}{between}. {result.detail}.{too_good}"
