import BrokerInterface

extension Device {
    /// Something of the user's is behind it that can answer or not.
    var hasFile: Bool {
        (try? TargetCatalog.target(target))?.needsFile ?? (file != nil)
    }
}
