import BrokerInterface
import Targets

extension Device {
    /// Something of the user's is behind it that can answer or not.
    var hasFile: Bool {
        (try? TargetManifest.named(target)).map { !$0.inputs.isEmpty } ?? (file != nil)
    }
}
