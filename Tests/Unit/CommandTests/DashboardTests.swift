import BrokerInterface
import Foundation
import Testing

@testable import ubd

@Suite("The dashboard in docs/grafana-dashboard.json")
struct DashboardTests {
    @Test("asks only for metrics that there are, and for each but the wake-ups")
    func metrics() throws {
        let file = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("../../../docs/grafana-dashboard.json").standardized
        let json = try JSONSerialization.jsonObject(with: Data(contentsOf: file)) as? [String: Any]
        let panels = try #require(json?["panels"] as? [[String: Any]])
        let expressions = panels.flatMap {
            ($0["targets"] as? [[String: Any]] ?? []).compactMap { $0["expr"] as? String }
        }
        #expect(panels.count == 6 && expressions.count >= panels.count)
        let asked = Set(
            expressions.flatMap { text in
                text.split { !($0.isLetter || $0.isNumber || $0 == "_") }.filter { $0.hasPrefix("ubd_") }.map(
                    String.init)
            })
        var counts = Counts(latency: [1])
        counts.read.requests = 1
        let device = DeviceStats(id: 0, generation: 1, since: 1, total: counts)
        let there = Set(try OpenMetricsReader(OpenMetrics.text([device], bounds: [250]) + "\n").samples.map(\.name))
        #expect(asked.subtracting(there).isEmpty, "\(asked.subtracting(there))")
        let left = there.subtracting(asked).filter { !$0.hasSuffix("_created") }
        #expect(left == ["ubd_device_wake_ups_total"], "\(left)")
    }
}
