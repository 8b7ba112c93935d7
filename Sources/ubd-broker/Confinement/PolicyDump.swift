import BrokerInterface
import Policy
import PolicyCompiler
import Targets

/// Shows what a worker or the broker runs under: filters as libseccomp's pseudo code, ring policies with resolved
/// includes.
enum PolicyDump {
    /// The subject of `--dump-policy` that is no target.
    static let broker = "broker"

    static var subjects: [String] { TargetList.names + [broker] }

    /// nil for an unknown subject. Errors give file, line and column.
    static func text(of subject: String, folder: String) throws -> String? {
        let own = try filter("broker.policy", "The broker's own filter, inherited by all that it starts", folder)
        if subject == broker { return own }
        guard let target = TargetList.all.first(where: { $0.name == subject }) else { return nil }
        var text = own + (try filter("worker-setup.policy", "Stage A, while a worker sets itself up", folder))
        text += try filter("target-\(target.name).policy", "Stage B, from its first request on", folder)
        for mode in DataMode.allCases {
            let ring = try RingPolicy(
                parsing: "\(target.name).ring", for: RingMode(zeroCopy: mode.isZeroCopy, batch: mode.isBatch),
                read: { try TrustedFile.read(folder + "/rings/" + $0) })
            text += "# \(target.name).ring: each of its rings, in mode \(mode.rawValue)\n\n\(ring.text)\n"
        }
        if target.submissions.hasSocket {
            let name = "\(target.name)-sockets.ring"
            let ring = try RingPolicy(parsing: name, read: { try TrustedFile.read(folder + "/rings/" + $0) })
            text += "# \(name): each ring of a socket\n\n\(ring.text)\n"
        }
        return text
    }

    private static func filter(_ name: String, _ title: String, _ folder: String) throws -> String {
        let policy = try SeccompPolicy(parsing: name, read: { try TrustedFile.read(folder + "/seccomp/" + $0) })
        return "# \(name): \(title)\n\n\(try SeccompCompiler.pseudoCode(policy))\n"
    }
}
