import BrokerInterface
import Targets

extension Device {
    /// The user's thing behind it, which may not answer: "file" or "server"; nil when there is none. A target of a newer
    /// broker, which this program does not know, may store data.
    var source: String? {
        guard let target = try? TargetManifest.named(target) else { return "file" }
        // Memory answers.
        if target.isInMemory { return nil }
        return target.inputs.first.map { $0.role == .sockets ? "server" : "file" }
    }

    /// Connections to a server are behind it, which a program of its owner's renews when they are lost.
    var hasConnections: Bool { source == "server" }
}
