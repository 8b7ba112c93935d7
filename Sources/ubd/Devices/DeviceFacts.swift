import BrokerInterface
import Targets

extension Device {
    /// The user's file is behind it, which may not answer. A target of a newer broker, which this program does not know, may
    /// store data.
    var hasFile: Bool {
        (try? TargetManifest.named(target)).map { !$0.inputs.isEmpty } ?? true
    }
}
