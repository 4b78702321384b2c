"""Options to the desired rules and routes (`Plan`), and plan plus current state to `Changes`; pure."""
