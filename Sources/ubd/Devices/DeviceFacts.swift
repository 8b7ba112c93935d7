import BrokerInterface
import Targets

extension Device {
    /// The user's file is behind it, which may not answer.
    var hasFile: Bool {
        (try? TargetManifest.named(target)).map { !$0.inputs.isEmpty } ?? (file != nil)
    }
}
