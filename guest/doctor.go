package guest

// HasAgent tells whether this program was built with the guest's agent in it.
func HasAgent() bool {
	b, err := agentFiles.ReadFile("agentbin/agent")
	return err == nil && len(b) > 0
}
