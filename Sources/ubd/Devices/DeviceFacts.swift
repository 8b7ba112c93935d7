import BrokerInterface
import Targets

extension Device {
    /// The user's thing behind it, which may not answer: "file" or "server"; nil when there is none.
    var source: String? {
        guard let target = try? TargetManifest.named(target) else { return file == nil ? nil : "file" }
        return target.inputs.first.map { $0.role == .sockets ? "server" : "file" }
    }

    /// Connections to a server are behind it, which a program of its owner's renews when they are lost.
    var hasConnections: Bool { source == "server" }
}
